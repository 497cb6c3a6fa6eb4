"""What the detector saw, drawn on the frame: heat, contours, regions, tiles, caption.

`draw` does all of it. The others take an image uint8 (h, w, 3) RGB and return a new one; line widths and text grow
with the image. The colour scale is fixed: 0 to 1, 0.5 at the threshold, so that overlays of different frames can be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import FrameError
from edge_ad.imaging import cover_mask, resize_mask, to_rgb
from edge_ad.roi import Roi
from edge_ad.runtime.result import Region, Result, Verdict
from edge_ad.tiling import TileGrid

Image = NDArray[np.uint8]
Rgb = tuple[int, int, int]

COLORMAP = cv2.COLORMAP_INFERNO
OPACITY = 0.75  # of the heat where the map is 1
_WHITE: Rgb = (255, 255, 255)
_DARK: Rgb = (16, 16, 20)
_RED: Rgb = (255, 64, 64)
_GREEN: Rgb = (72, 214, 120)
_CYAN: Rgb = (64, 224, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(result: Result, grid: TileGrid | None = None, roi: Roi | None = None) -> Image:
    """Everything on the result's own frame, (h, w, 3) RGB whatever its colour and depth: heat, contours, regions,
    caption; the tiles where ``grid`` is given; darker outside of ``roi``, the detector's.

    No heat where the result is not normalised: its map has no fixed scale. The caption alone where the verdict is
    "error", on black where the frame is none as declared.
    """
    if result.verdict is Verdict.ERROR:
        return caption(_seen(result), result.pred_score, result.verdict)
    drawn = to_rgb(result.frame, result.color, result.bits)
    if roi is not None:
        drawn = darken(drawn, ~resize_mask(roi.inside, result.original_size))
    if result.is_normalised:
        drawn = heat(drawn, result.map_at())
    drawn = contours(drawn, cover_mask(result.pred_mask, result.original_size))
    if grid is not None:
        drawn = tiles(drawn, grid, result.tile_scores)
    drawn = boxes(drawn, result.regions_at())
    return caption(drawn, result.pred_score, result.verdict)


def heat(image: Image, anomaly_map: NDArray[np.float32]) -> Image:
    """``image`` under the heat of ``anomaly_map`` (h, w) in [0, 1]: more opaque where it is higher, clear where low."""
    levels = np.rint(np.clip(anomaly_map, 0, 1) * 255).astype(np.uint8)
    colors, keep = _heat_tables()
    kept = cv2.multiply(image, cv2.merge([keep[levels]] * 3), scale=1 / 255)
    drawn: Image = cv2.add(kept, colors[levels])  # type: ignore[assignment]
    return drawn


def darken(image: Image, where: NDArray[np.bool_]) -> Image:
    """Half as bright ``where`` (h, w), so that one sees it is not looked at."""
    drawn = image.copy()
    drawn[where] //= 2
    return drawn


def contours(image: Image, mask: NDArray[np.bool_], color: Rgb = _CYAN) -> Image:
    """The outlines of ``mask`` (h, w)."""
    drawn = image.copy()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, color, _line_px(image), cv2.LINE_AA)
    return drawn


def boxes(image: Image, regions: Sequence[Region], color: Rgb = _RED) -> Image:
    """A box with its largest score around each region, whose coordinates are the image's: `Result.regions_at`."""
    drawn = image.copy()
    line_px = _line_px(image)
    gap = 2 * line_px
    for region in reversed(regions):  # the highest on top
        left, top = region.x - gap, region.y - gap
        right, bottom = region.x + region.width + gap, region.y + region.height + gap
        cv2.rectangle(drawn, (left, top), (right, bottom), color, line_px, cv2.LINE_AA)
        _label(drawn, f"{region.max_score:.2f}", (left, top), color)
    return drawn


def tiles(image: Image, grid: TileGrid, scores: Sequence[float] | NDArray[np.float32]) -> Image:
    """The tiles' borders, and each tile's score in its centre, but NaN. Printed as they are, raw for instance."""
    drawn = image.copy()
    height, width = image.shape[:2]
    scale_y, scale_x = height / grid.image_size[0], width / grid.image_size[1]
    lines = drawn.copy()
    for border in grid.borders(0):
        cv2.line(lines, (0, int(border * scale_y)), (width, int(border * scale_y)), _WHITE, _line_px(image))
    for border in grid.borders(1):
        cv2.line(lines, (int(border * scale_x), 0), (int(border * scale_x), height), _WHITE, _line_px(image))
    drawn = cv2.addWeighted(lines, 0.5, drawn, 0.5, 0)  # type: ignore[assignment]
    for location, score in zip(grid.locations, scores, strict=True):
        if math.isnan(score):  # not run: nothing of the tile is looked at
            continue
        rows, cols = grid.window(location)
        centre = int((cols.start + cols.stop) / 2 * scale_x), int((rows.start + rows.stop) / 2 * scale_y)
        _label(drawn, f"{score:.3g}", centre, _WHITE, centred=True)
    return drawn


def caption(image: Image, score: float, verdict: Verdict) -> Image:
    """The verdict and its score at the top left."""
    drawn = image.copy()
    color = _GREEN if verdict is Verdict.NORMAL else _RED
    margin = max(4, round(0.015 * min(image.shape[:2])))
    _label(
        drawn,
        str(verdict) if verdict is Verdict.ERROR else f"{verdict} {score:.2f}",
        (margin, margin),
        color,
        below=True,
        scale=1.4,
    )
    return drawn


def _seen(result: Result) -> Image:
    """The frame of an error result."""
    try:
        return to_rgb(result.frame, result.color, result.bits)
    except FrameError:
        return np.zeros((*result.original_size, 3), np.uint8)


@cache
def _heat_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Per map level: its colour times its opacity (256, 3), and what is kept of the image (256,)."""
    levels = np.arange(256, dtype=np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels[:, None], COLORMAP), cv2.COLOR_BGR2RGB)[:, 0]
    # Smoothstep: nearly clear up to half the threshold, most of the way at the threshold
    x = np.clip(levels / 255 / 0.75, 0, 1)
    opacity = OPACITY * x * x * (3 - 2 * x)
    return np.rint(colors * opacity[:, None]).astype(np.uint8), np.rint(255 * (1 - opacity)).astype(np.uint8)


def _line_px(image: Image) -> int:
    """1 up to 500 px, 4 at 2000 px."""
    return max(1, int(min(image.shape[:2]) / 500 + 0.5))


def _label(
    drawn: Image,
    text: str,
    at: tuple[int, int],
    color: Rgb,
    *,
    below: bool = False,
    centred: bool = False,
    scale: float = 1.0,
) -> None:
    """Write ``text`` on a dark ground, in place: above, ``below`` or ``centred`` on (x, y), inside the image."""
    height, width = drawn.shape[:2]
    font_scale = scale * max(0.35, min(height, width) / 1100)
    weight = max(1, round(1.6 * font_scale))
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, font_scale, weight)
    pad = max(2, text_height // 3)
    box_width, box_height = text_width + 2 * pad, text_height + 2 * pad
    x, y = at
    left = x - box_width // 2 if centred else x
    top = y - box_height // 2 if centred else y if below else y - box_height
    left, top = max(0, min(left, width - box_width)), max(0, min(top, height - box_height))
    ground = drawn[top : top + box_height, left : left + box_width]
    ground[:] = cv2.addWeighted(ground, 0.3, np.full_like(ground, _DARK), 0.7, 0)
    cv2.putText(drawn, text, (left + pad, top + pad + text_height), _FONT, font_scale, color, weight, cv2.LINE_AA)
