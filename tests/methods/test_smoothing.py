"""Upsampling and smoothing against torch's interpolation and scipy's Gaussian, in float64, for any sizes."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.methods.parts.smoothing import UpsampleSmooth, bilinear_matrix

SIZES = st.tuples(st.integers(1, 13), st.integers(1, 41))


def interpolate(maps, size, align_corners=False):
    return F.interpolate(torch.from_numpy(maps), size=size, mode="bilinear", align_corners=align_corners).numpy()


@given(SIZES, SIZES, st.booleans())
@settings(max_examples=60)
def test_bilinear_matrices_are_torchs_interpolation(height, width, align_corners):
    (source_h, target_h), (source_w, target_w) = height, width
    maps = np.random.default_rng(0).normal(size=(1, 1, source_h, source_w))
    rows, cols = (bilinear_matrix(*sizes, align_corners=align_corners) for sizes in (height, width))
    expected = interpolate(maps, (target_h, target_w), align_corners)
    np.testing.assert_allclose(rows @ maps @ cols.T, expected, atol=1e-12)


@given(SIZES, st.booleans())
def test_weights_of_a_row_sum_to_one(sizes, align_corners):
    matrix = bilinear_matrix(*sizes, align_corners=align_corners)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert matrix.min() >= 0
    assert ((matrix > 0).sum(1) <= 2).all()


def test_doubling_by_hand():
    # Centres of the four targets lie at -1/4, 1/4, 3/4, 5/4 of the two sources; ends are clamped
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(bilinear_matrix(2, 4), expected)
    # Corners on corners: the targets lie at 0, 1/4, 1/2, 3/4, 1
    expected = [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(bilinear_matrix(2, 5, align_corners=True), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.0, 30.0])  # 30: the kernel is wider than the tile, and mirrored twice
def test_smoothing_is_scipys(sigma, align_corners):
    maps = np.random.default_rng(0).normal(size=(2, 1, 5, 7))
    expected = scipy.ndimage.gaussian_filter(interpolate(maps, (23, 29), align_corners), (0, 0, sigma, sigma))
    got = UpsampleSmooth((5, 7), (23, 29), sigma, align_corners=align_corners)(torch.from_numpy(maps).float())
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)  # float32 sums of values of about 1


def test_a_constant_map_stays_constant():
    got = UpsampleSmooth((5, 7), (23, 29), 4.0)(torch.full((1, 1, 5, 7), 3.0))
    torch.testing.assert_close(got, torch.full((1, 1, 23, 29), 3.0))


def test_it_is_no_part_of_a_stored_head():
    """The matrices follow from the sizes."""
    assert dict(UpsampleSmooth((5, 7), (23, 29)).state_dict()) == {}
