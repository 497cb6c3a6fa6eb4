"""What a detector says about one frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.imaging import Color, resize_map
from edge_ad.runtime.faults import Fault
from edge_ad.tiling import Size


class Verdict(StrEnum):
    """What a result says of its frame."""

    NORMAL = "normal"
    ANOMALOUS = "anomalous"
    ERROR = "error"  # the frame could not be inspected: it is not known to be normal


@dataclass(frozen=True)
class Region:
    """A connected anomalous area (8-connectivity), in pixels of the anomaly map, or of an image: `Result.regions_at`.

    Attributes:
        x, y: of its box's top left corner.
        width, height: of its box.
        area_px: how many pixels it has; those of its box are more.
        max_score: largest value of the anomaly map in it.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    max_score: float


@dataclass(frozen=True, eq=False)
class Result:
    """Scores and maps of one frame. It owns them: the next frame does not change them.

    Attributes:
        pred_score: in [0, 1], 0.5 at the threshold; the raw score where not ``is_normalised``.
        pred_label: True where the frame is anomalous: its score is at the threshold or above.
        anomaly_map: (H, W) float32 at the bundle's image size, scaled as ``pred_score`` by the map's own threshold.
        pred_mask: (H, W) bool, True where the map is at its threshold or above.
        raw_score: merged score before it was scaled to [0, 1].
        raw_map: (H, W) float32 merged map before it was scaled to [0, 1].
        tile_scores: (T,) float32 scores as the tile models gave them, in grid order; NaN of tiles that lie outside of
            the region of interest, and are not run.
        frame: the frame as it came in, for overlays. By reference, the one array that is not the result's own; of a
            stream its copy, unless that was told not to copy.
        color, bits: of the frame, as declared.
        timings_ms: milliseconds: convert (to RGB at the bundle's image size), wait (for other threads), tiles (crops),
            infer, merge, seams, fuse (with a global model), roi (quiet outside), post, total. Of a stream also queue
            (captured, not yet taken up) and handover (inferred, not yet asked for); total is then the age of the frame.
        frame_id: as passed in, or counted by `Detector.stream`.
        is_normalised: False where the bundle's normalisation stage is "none".
        device: what the graphs ran on, as the engine reports it.
        fault: what went wrong with this frame, where a stream's policy kept it from being raised; else None.
        error: the message of that fault.
        info: what the source of a stream gave with the frame, see `Frame`.

    Where the verdict is "error", nothing was measured, and everything that might be compared with a threshold lies on
    its far side: ``pred_label`` and the whole ``pred_mask`` are True, ``pred_score`` and ``anomaly_map`` infinite;
    ``raw_score``, ``raw_map`` and ``tile_scores`` are NaN.
    """

    pred_score: float
    pred_label: bool
    anomaly_map: NDArray[np.float32]
    pred_mask: NDArray[np.bool_]
    raw_score: float
    raw_map: NDArray[np.float32]
    tile_scores: NDArray[np.float32]
    frame: NDArray[Any]
    color: Color
    bits: int | None
    timings_ms: Mapping[str, float]
    frame_id: int | str | None
    is_normalised: bool
    device: str
    fault: Fault | None = None
    error: str | None = None
    info: Any = None

    @property
    def verdict(self) -> Verdict:
        """Normal, anomalous, or neither."""
        if self.pred_score == np.inf:
            return Verdict.ERROR
        return Verdict.ANOMALOUS if self.pred_label else Verdict.NORMAL

    @property
    def original_size(self) -> Size:
        """(height, width) of the frame that came in; of the map where that was no image."""
        height, width = (*np.shape(self.frame), 0, 0)[:2]
        return (height, width) if height and width else self.pred_mask.shape

    @property
    def regions(self) -> tuple[Region, ...]:
        """Connected areas of ``pred_mask``, the highest first; computed when first asked for."""
        found: tuple[Region, ...] | None = self.__dict__.get("_regions")
        if found is None:  # `cached_property` would have one lock for all results (Python 3.11)
            found = self.__dict__["_regions"] = find_regions(self.pred_mask, self.anomaly_map)
        return found

    def regions_at(self, size: Size | None = None) -> tuple[Region, ...]:
        """`regions` in pixels of an image of (height, width) ``size``; of ``original_size`` where None.

        Boxes are rounded outwards, so that none vanishes. An area is scaled, and at least one pixel.
        """
        size = size or self.original_size
        return tuple(_scaled(region, self.pred_mask.shape, size) for region in self.regions)

    def map_at(self, size: Size | None = None) -> NDArray[np.float32]:
        """The anomaly map resized to (height, width) ``size``; to ``original_size`` where None."""
        size = size or self.original_size
        if self.verdict is Verdict.ERROR:
            return np.full(size, np.inf, np.float32)  # interpolation would make NaN of it
        return resize_map(self.anomaly_map, size)


def error_result(
    frame: NDArray[Any],
    *,
    color: Color,
    bits: int | None,
    map_size: Size,
    tiles: int,
    timings_ms: Mapping[str, float],
    frame_id: int | str | None,
    device: str,
    fault: Fault | None,
    error: str,
) -> Result:
    """The result of a frame that could not be inspected; see `Result` for what it holds."""
    return Result(
        pred_score=math.inf,
        pred_label=True,
        anomaly_map=np.full(map_size, np.inf, np.float32),
        pred_mask=np.ones(map_size, bool),
        raw_score=math.nan,
        raw_map=np.full(map_size, np.nan, np.float32),
        tile_scores=np.full(tiles, np.nan, np.float32),
        frame=frame,
        color=color,
        bits=bits,
        timings_ms=timings_ms,
        frame_id=frame_id,
        is_normalised=True,
        device=device,
        fault=fault,
        error=error,
    )


def find_regions(mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32]) -> tuple[Region, ...]:
    """Connected areas (8-connectivity) of ``mask`` (H, W), by their largest value in ``anomaly_map``, descending."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for label in range(1, count):  # 0 is the background
        x, y, width, height, area = (int(value) for value in boxes[label])
        window = np.s_[y : y + height, x : x + width]
        peak = float(anomaly_map[window][labels[window] == label].max())
        found.append(Region(x, y, width, height, area, peak))
    return tuple(sorted(found, key=lambda region: -region.max_score))


def _scaled(region: Region, old: Size, new: Size) -> Region:
    (old_height, old_width), (height, width) = old, new
    x, y = region.x * width // old_width, region.y * height // old_height
    right = -(-(region.x + region.width) * width // old_width)
    bottom = -(-(region.y + region.height) * height // old_height)
    area_px = max(1, round(region.area_px * height * width / (old_height * old_width)))
    return Region(x, y, right - x, bottom - y, area_px, region.max_score)
