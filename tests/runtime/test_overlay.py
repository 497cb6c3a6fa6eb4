from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_session import fake_detector
from numpy.typing import NDArray
from tiny_bundle import some_image, tiny_manifest

from edge_ad.roi import Roi
from edge_ad.runtime import overlay
from edge_ad.runtime.faults import FaultPolicy
from edge_ad.runtime.result import Region, Result, Verdict
from edge_ad.tiling import TileGrid

GREY = np.full((211, 307, 3), 120, np.uint8)


@pytest.fixture
def result() -> Result:
    manifest = tiny_manifest()
    return fake_detector(manifest)(some_image(manifest.setup), color="rgb")


def test_heat_leaves_normal_areas_and_reddens_the_rest() -> None:
    anomaly_map = np.zeros(GREY.shape[:2], np.float32)
    anomaly_map[:, 100:200], anomaly_map[:, 200:] = 0.5, 0.75
    drawn = overlay.heat(GREY, anomaly_map)
    np.testing.assert_array_equal(drawn[:, :100], GREY[:, :100])
    red, _, blue = drawn[50, 250].astype(int)
    assert red > blue + 60  # RGB, not BGR: inferno is orange here
    change = np.abs(drawn.astype(int) - GREY).sum(2)
    assert 0 < change[50, 150] < change[50, 250]


def test_heat_clips() -> None:
    beyond = np.full(GREY.shape[:2], 7, np.float32)
    np.testing.assert_array_equal(overlay.heat(GREY, beyond), overlay.heat(GREY, np.ones_like(beyond)))
    np.testing.assert_array_equal(overlay.heat(GREY, -beyond), GREY)


def test_outside_of_the_region_of_interest_it_is_darker(result: Result) -> None:
    inside = np.ones(result.pred_mask.shape, bool)
    inside[:, :20] = False
    plain, seen = overlay.draw(result), overlay.draw(result, roi=Roi(inside))
    width = result.original_size[1]
    left = slice(0, 20 * width // inside.shape[1] - 2)
    assert seen[:, left].mean() < 0.8 * plain[:, left].mean()
    right = slice(20 * width // inside.shape[1] + 2, None)
    np.testing.assert_array_equal(seen[:, right], plain[:, right])
    np.testing.assert_array_equal(overlay.darken(GREY, GREY[:, :, 0] > 0), GREY // 2)


def test_contours_stay_on_the_edge() -> None:
    mask = np.zeros(GREY.shape[:2], bool)
    mask[40:100, 60:180] = True
    changed = (overlay.contours(GREY, mask) != GREY).any(2)
    assert changed[40, 60:180].all()
    assert changed[99, 60:180].all()
    assert not changed[45:95, 66:174].any()
    assert not changed[:36].any()


def test_boxes_lie_around_regions() -> None:
    region = Region(x=40, y=60, width=20, height=30, area_px=600, max_score=0.9)
    changed = (overlay.boxes(GREY[:200, :300], [region], color=(1, 2, 3)) != 120).any(2)
    assert changed[58, 50]  # top edge: 60 less a gap of two line widths
    assert changed[80, 38]
    assert not changed[75, 50]
    assert not changed[:, 70:].any()


def test_tiles_are_drawn_at_their_borders() -> None:
    grid = TileGrid((46, 58), (23, 29), (23, 29))
    drawn = overlay.tiles(np.zeros((460, 580, 3), np.uint8), grid, [1.0, 2.0, 3.0, 4.0])
    assert drawn[230, 5].tolist() == drawn[5, 290].tolist() == [128, 128, 128]
    assert drawn[100:130, 130:160].max() == 255  # a score in the first tile's centre
    with pytest.raises(ValueError, match="zip"):
        overlay.tiles(GREY, grid, [1.0])


@pytest.mark.parametrize(("verdict", "channel"), [(Verdict.ANOMALOUS, 0), (Verdict.NORMAL, 1), (Verdict.ERROR, 0)])
def test_the_caption_is_red_or_green(verdict: Verdict, channel: int) -> None:
    drawn = overlay.caption(np.zeros((211, 307, 3), np.uint8), 0.73, verdict)
    assert drawn.max((0, 1)).argmax() == channel


def test_a_small_frame_shows_every_region(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel of the map, a tenth of the frame's."""
    outlined: list[NDArray[np.bool_]] = []
    monkeypatch.setattr(overlay, "contours", lambda image, mask: outlined.append(mask) or image)
    mask = np.zeros(result.pred_mask.shape, bool)
    mask[31, 41] = True
    found = replace(result, frame=GREY[:4, :5], pred_mask=mask)
    overlay.draw(found)
    (region,) = found.regions_at()
    assert np.argwhere(outlined[0]).tolist() == [[region.y, region.x]] == [[31 * 4 // 46, 41 * 5 // 58]]


@pytest.mark.parametrize("size", [(256, 307), (1511, 2003), (31, 37)])
@pytest.mark.parametrize("normalised", [True, False])
def test_draw_at_any_size(result: Result, size: tuple[int, int], normalised: bool) -> None:
    image = np.full((*size, 3), 120, np.uint8)
    drawn = overlay.draw(replace(result, frame=image, is_normalised=normalised), tiny_manifest().setup.grid)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert (image == 120).all()
    assert (drawn != image).any()


def test_draw_sees_every_frame_in_its_colours() -> None:
    manifest = tiny_manifest()
    detector, rgb = fake_detector(manifest), some_image(manifest.setup)
    rgba = np.dstack([rgb, np.zeros_like(rgb[:, :, 0])])
    expected = overlay.draw(detector(rgb, color="rgb"))
    for frame, color in ((rgb[:, :, ::-1], "bgr"), (rgba, "rgba"), (rgba[:, :, [2, 1, 0, 3]], "bgra")):
        np.testing.assert_array_equal(overlay.draw(detector(frame, color=color)), expected)
    np.testing.assert_array_equal(overlay.draw(detector(rgb.astype(np.uint16) * 257, color="rgb", bits=16)), expected)
    grey = rgb[:, :, 0]
    expected = overlay.draw(detector(np.dstack([grey] * 3), color="rgb"))
    np.testing.assert_array_equal(overlay.draw(detector(grey, color="mono")), expected)
    np.testing.assert_array_equal(overlay.draw(detector(grey.astype(np.uint16), color="mono", bits=8)), expected)


@pytest.mark.parametrize("frame", [np.zeros((50, 60), np.uint8), np.zeros((1, 50, 60, 3), np.uint8), "frame"])
def test_what_is_no_frame_as_declared_is_drawn_on_black(frame: Any) -> None:
    (result,) = fake_detector(tiny_manifest()).stream([frame], color="rgb", policy=FaultPolicy(frame="report"))
    drawn = overlay.draw(result)
    assert drawn.shape == (*result.original_size, 3)
    assert (drawn[-1] == 0).all() or len(drawn) == 1
