from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.evaluation.curve import Curve


def curve(*vertices: tuple[float, float]) -> Curve:
    x, y = np.array(vertices).T
    return Curve(x, y)


def test_the_point_at_the_limit_is_interpolated():
    # 1 |      /      triangle up to 0.5: 0.5 * 0.5 / 2 = 0.125, divided by 0.5
    #   |   /  :
    #   | /    :
    # 0 +--0.5-1
    assert curve((0, 0), (1, 1)).area(0.5) == pytest.approx(0.25)
    part = curve((0, 0), (1, 1)).up_to(0.5)
    assert (part.x.tolist(), part.y.tolist()) == ([0, 0.5], [0, 0.5])


def test_a_vertical_line_on_the_limit_is_entered_at_its_lower_end():
    # 0.8 |     ______
    #     |    |            under the line up to 0.3: a triangle of height 0.2
    # 0.2 |  . |
    #   0 +---0.3-----1
    assert curve((0, 0), (0.3, 0.2), (0.3, 0.8), (1, 1)).area(0.3) == pytest.approx(0.1)


def test_a_limit_at_the_end_takes_all():
    assert curve((0, 0), (0.25, 1), (1, 1)).area() == pytest.approx(0.875)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 3000), st.integers(2, 512))
def test_a_thinned_curve_keeps_its_ends_and_its_shape(seed: int, count: int, points: int):
    rng = np.random.default_rng(seed)
    whole = Curve(np.sort(rng.random(count)), np.sort(rng.random(count)))
    thin = whole.thinned(points)
    assert len(thin.x) <= points
    assert (thin.x[0], thin.y[0], thin.x[-1], thin.y[-1]) == (whole.x[0], whole.y[0], whole.x[-1], whole.y[-1])
    vertices = set(zip(whole.x.tolist(), whole.y.tolist(), strict=True))
    assert vertices.issuperset(zip(thin.x.tolist(), thin.y.tolist(), strict=True))
    # No stretch of the curve longer than one step and one original segment is cut
    step = 2 / (points - 1) + np.max(np.diff(whole.x) + np.diff(whole.y))
    assert np.max(np.diff(thin.x) + np.diff(thin.y)) <= step + 1e-9
