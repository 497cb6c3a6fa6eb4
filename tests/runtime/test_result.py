from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from edge_ad.runtime.result import Region, find_regions


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


def test_nothing_found() -> None:
    assert find_regions(np.zeros((5, 7), bool), np.zeros((5, 7), np.float32)) == ()


@settings(max_examples=30, deadline=None)
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
