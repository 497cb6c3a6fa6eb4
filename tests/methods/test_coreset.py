"""The coreset against the definition, in numpy and float64, all distances at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_ad.methods.parts.coreset import PROJECTED_DIMENSIONS, farthest_points, random_projection


def naive(points, count, first):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    chosen = [first]
    while len(chosen) < count:
        nearest = distances[:, chosen].min(1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


@pytest.mark.parametrize(("n", "k", "count", "first"), [(211, 7, 211, 3), (307, 61, 97, 306), (5, 1, 1, 2)])
def test_the_farthest_point_is_taken_every_time(n, k, count, first):
    points = np.random.default_rng(n).normal(3.0, 1.0, (n, k))
    chosen = farthest_points(torch.from_numpy(points).float(), count, first)
    assert chosen.tolist() == naive(points, count, first)


def test_a_common_offset_does_not_matter():
    points = torch.randn(101, 11, generator=torch.Generator().manual_seed(0))
    # Multiples of 2^-8 up to 2^11 are exact in float32, and their squares alone are not
    points = (points * 256).round() / 256
    assert torch.equal(farthest_points(points + 1000, 50, 0), farthest_points(points, 50, 0))


@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_no_point_is_taken_twice_even_where_points_are_the_same(distinct, copies, data):
    points = torch.arange(distinct, dtype=torch.float32)[:, None].repeat(copies, 3)
    count = data.draw(st.integers(1, len(points)))
    chosen = farthest_points(points, count, 0)
    assert len(set(chosen.tolist())) == count
    assert len(set(points[chosen[:distinct], 0].tolist())) == min(count, distinct)  # the different ones come first


def test_progress_ends_at_the_last_point():
    told = []
    farthest_points(torch.randn(250, 3), 203, 0, lambda done, total, what: told.append((done, total, what)))
    assert told == [(100, 203, "coreset"), (200, 203, "coreset"), (203, 203, "coreset")]


def test_a_projection_keeps_distances():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 500, generator=generator)
    ratio = torch.pdist(points @ random_projection(500, generator)) / torch.pdist(points)
    # The squared ratio is chi-squared with k degrees of freedom over k: standard deviation of the ratio 1 / sqrt(2 k)
    expected = 1 / np.sqrt(2 * PROJECTED_DIMENSIONS)
    assert abs(ratio.mean() - 1) < 0.02
    assert 0.8 * expected < ratio.std() < 1.2 * expected
    assert torch.equal(random_projection(60, generator), torch.eye(60))
