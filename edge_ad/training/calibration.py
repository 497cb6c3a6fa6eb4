"""Thresholds and scales of a detector, fitted on held-out normal images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Fusion, Normalisation, NormalisationStage, Scale
from edge_ad.evaluation.raw_values import RawValues, Summary, summary
from edge_ad.evaluation.thresholds import DEFAULT_RULE, ThresholdRule
from edge_ad.imaging import resize_mask
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.detector import Detector
from edge_ad.tiling import WHOLE, Location

NARROWEST = 0.05  # scale of a tile, of the median tile's
STILL = 1e-3  # of the widest tile's scale: one below it never changes


def fit_normalisation(
    detector: Detector,
    images: NDArray[np.uint8],
    *,
    rule: str = DEFAULT_RULE,
    stage: NormalisationStage = NormalisationStage.IMAGE,
    progress: Progress = no_progress,
) -> Normalisation:
    """Fit what maps raw values to [0, 1] with 0.5 at the threshold.

    Args:
        detector: runs raw (`NormalisationStage.NONE`).
        images: held-out normal images, uint8 (n, H, W, 3) RGB.
        rule: see `edge_ad.evaluation.thresholds`.
        stage: at ``tile`` every location is scaled by its own statistics first, and the merged values again.

    Raises:
        TooFewImagesError: fewer images than the rule needs.
    """
    raw = replace(detector.manifest.normalisation, stage=stage)
    # of_image[i] is ``fitted`` without image i, see `_left_out`
    fitted, of_image = raw, [raw] * len(images)
    if stage is NormalisationStage.TILE:
        by_tile = _tile_summaries(detector, images, progress)
        fitted = _with_tiles(fitted, detector, by_tile, rule)
        of_image = [_with_tiles(raw, detector, others, rule) for others in _left_out(by_tile, rule)]
    if detector.manifest.setup.global_model:
        parts = _parts(detector, of_image, images, progress)
        fitted = replace(fitted, fusion=_fusion(parts, rule))
        left_out = zip(of_image, _left_out(parts, rule), strict=True)
        of_image = [replace(norm, fusion=_fusion(others, rule)) for norm, others in left_out]
    found = []
    for index, (image, norm) in enumerate(zip(images, of_image, strict=True)):
        merged = detector.with_normalisation(norm).raw(image[None])
        found.append(summary(merged.scores[0], merged.maps[0], detector.inside))
        progress(index + 1, len(images), "thresholds")
    score, map_scale = RawValues.of(found).scales(rule)
    return replace(fitted, rule=f"{rule} on {len(images)} held-out normal images", score=score, map=map_scale)


Item = TypeVar("Item")


def _left_out(seen: Sequence[Item], rule: str) -> Iterator[Sequence[Item]]:
    """For every image what was ``seen`` of the others; of all, where the others are too few for ``rule``.

    An image that is scaled by statistics it took part in looks quieter than the next one will: of a dozen, nine tiles
    each so scaled, the thresholds of their maximum let every tenth good image raise an alarm, not every fiftieth.
    """
    enough = len(seen) > ThresholdRule.parse(rule).minimum_images
    for index in range(len(seen)):
        yield [*seen[:index], *seen[index + 1 :]] if enough else seen


def _tile_summaries(detector: Detector, images: NDArray[np.uint8], progress: Progress) -> list[list[Summary]]:
    """Of every image one per tile that is run, in grid order."""
    found = []
    for index, image in enumerate(images):
        tiles = detector.tiles(image[None])
        found.append([summary(scores[0], maps[0], _inside(detector, tile)) for tile, scores, maps in tiles])
        progress(index + 1, len(images), "thresholds per tile")
    return found


def _with_tiles(
    norm: Normalisation, detector: Detector, by_tile: Sequence[Sequence[Summary]], rule: str
) -> Normalisation:
    """``norm`` with scales of scores and maps for every tile; those of tiles that are not run mean nothing."""
    scales = [RawValues.of(tile).scales(rule) for tile in zip(*by_tile, strict=True)]
    run, locations = detector.manifest.setup.tiles, detector.grid.locations
    scores, maps = (dict(zip(run, widened(kind), strict=True)) for kind in zip(*scales, strict=True))
    tile_score, tile_map = (tuple(of.get(tile, Scale(0.0, 1.0)) for tile in locations) for of in (scores, maps))
    return replace(norm, tile_score=tile_score, tile_map=tile_map)


def _parts(
    detector: Detector, of_image: Sequence[Normalisation], images: NDArray[np.uint8], progress: Progress
) -> list[tuple[Summary, Summary]]:
    """Of every image the merged tiles and the global model, not yet fused."""
    found = []
    for index, (image, norm) in enumerate(zip(images, of_image, strict=True)):
        raw = detector.with_normalisation(norm).raw(image[None])
        assert raw.global_scores is not None  # the setup has a global model
        assert raw.global_maps is not None
        whole = summary(raw.global_scores[0], raw.global_maps[0], _inside(detector, WHOLE))
        found.append((summary(raw.scores[0], raw.maps[0], detector.inside), whole))
        progress(index + 1, len(images), "fusion")
    return found


def _fusion(parts: Sequence[tuple[Summary, Summary]], rule: str) -> Fusion:
    tiles, whole = zip(*parts, strict=True)
    return Fusion(*RawValues.of(tiles).scales(rule), *RawValues.of(whole).scales(rule))


def _inside(detector: Detector, location: Location) -> NDArray[np.bool_] | None:
    """Where the tile's map (h, w) shows the region of interest; None where that is everywhere."""
    region = detector.inside
    if region is None:
        return None
    size = detector.grid.tile_size
    if location == WHOLE:
        shrunk = resize_mask(region, size)
        return shrunk if shrunk.any() else None  # a region of a few pixels may vanish
    inside = np.zeros(size, bool)
    window = region[detector.grid.window(location)]  # ends at the image's edge, where the tile may not
    inside[: window.shape[0], : window.shape[1]] = window
    return inside


def widened(scales: Sequence[Scale]) -> tuple[Scale, ...]:
    """``scales`` of tiles, those of tiles that hardly vary widened, such as of a saturated background.

    The smallest noise would exceed their thresholds otherwise. From ``low`` to ``threshold`` it is then at least
    `NARROWEST` of that distance on the median tile of those that do vary.
    """
    widths = np.array([scale.threshold - scale.low for scale in scales])
    least = NARROWEST * float(np.median(widths[widths >= STILL * widths.max()]))
    return tuple(Scale(scale.low, max(scale.threshold, scale.low + least)) for scale in scales)
