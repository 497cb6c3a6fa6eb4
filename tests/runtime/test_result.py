from __future__ import annotations

from dataclasses import replace

import numpy as np
from fake_session import fake_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from tiny_bundle import tiny_manifest

from edge_ad.runtime.result import Region, Result, find_regions


def test_regions_by_hand() -> None:
    # columns  0 1 2 3 4 5 6
    mask = np.array(
        [
            [1, 1, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 1, 1],  # touches the first by a corner: one region
            [0, 0, 0, 0, 0, 0, 1],
        ],
        bool,
    )
    values = np.where(mask, 0.5, 0.9).astype(np.float32)  # higher outside: must not count
    values[1, 2], values[2, 6] = 0.6, 0.75
    assert find_regions(mask, values) == (
        Region(x=5, y=1, width=2, height=2, area_px=3, max_score=0.75),
        Region(x=0, y=0, width=3, height=2, area_px=3, max_score=float(np.float32(0.6))),
    )


def _result_of(mask: np.ndarray) -> Result:
    """Of a frame of 31 x 37 pixels, and with the mask given."""
    result = fake_detector(tiny_manifest())(np.zeros((31, 37), np.uint8), color="mono")
    return replace(result, pred_mask=mask, anomaly_map=mask.astype(np.float32))


def test_regions_of_another_size_by_hand() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2, 3] = mask[4:6, 5:8] = True
    result = _result_of(mask)
    large, small = Region(5, 4, 3, 2, 6, 1.0), Region(3, 2, 1, 1, 1, 1.0)
    assert set(result.regions_at((6, 8))) == set(result.regions) == {large, small}
    assert set(result.regions_at((12, 24))) == {Region(15, 8, 9, 4, 36, 1.0), Region(9, 4, 3, 2, 6, 1.0)}
    # by 1/2: columns 1.5 to 2 and 2.5 to 4, rows 1 to 1.5 and 2 to 3; areas 1/4 and 3/2
    assert set(result.regions_at((3, 4))) == {Region(2, 2, 2, 1, 2, 1.0), Region(1, 1, 1, 1, 1, 1.0)}
    assert result.regions_at() == result.regions_at((31, 37))
    assert result.regions is result.regions


@settings(max_examples=50)
@given(arrays(bool, (11, 13)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_no_region_vanishes_or_leaves_the_image(mask: np.ndarray, size: tuple[int, int]) -> None:
    result = _result_of(mask)
    for before, region in zip(result.regions, result.regions_at(size), strict=True):
        assert 0 <= region.x < region.x + region.width <= size[1]
        assert 0 <= region.y < region.y + region.height <= size[0]
        assert region.x <= before.x * size[1] / 13 + 1e-9
        assert region.x + region.width >= (before.x + before.width) * size[1] / 13 - 1e-9
        assert region.area_px >= 1


def test_nothing_found() -> None:
    assert find_regions(np.zeros((5, 7), bool), np.zeros((5, 7), np.float32)) == ()


@settings(max_examples=30)
@given(arrays(bool, (11, 13)), st.integers(0, 2**31))
def test_regions_against_scipy(mask: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).random(mask.shape).astype(np.float32)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    expected = []
    for index, (rows, cols) in enumerate(ndimage.find_objects(labels), 1):
        expected.append(
            Region(
                cols.start,
                rows.start,
                cols.stop - cols.start,
                rows.stop - rows.start,
                int((labels == index).sum()),
                float(values[labels == index].max()),
            )
        )
    found = find_regions(mask, values)
    assert len(found) == count
    assert set(found) == set(expected)
    assert [region.max_score for region in found] == sorted((r.max_score for r in found), reverse=True)
