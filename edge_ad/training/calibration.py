"""Thresholds and scales of a detector, fitted on held-out normal images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Fusion, Normalisation, NormalisationStage, Scale
from edge_ad.evaluation.raw_values import RawValues, summary
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.detector import Detector

NARROWEST = 0.05  # scale of a tile, of the median tile's


def fit_normalisation(
    detector: Detector,
    images: NDArray[np.uint8],
    *,
    rule: str = "sigma:3",
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
    tile_score: tuple[Scale, ...] = ()
    tile_map: tuple[Scale, ...] = ()
    if stage is NormalisationStage.TILE:
        tile_score, tile_map = _tile_scales(detector, images, rule, progress)
        detector = detector.with_normalisation(
            Normalisation(stage, rule, Scale(0.0, 1.0), Scale(0.0, 1.0), tile_score, tile_map)
        )
    fusion = None
    if detector.manifest.setup.global_model:
        fusion = _fusion(detector, images, rule, progress)
        norm = replace(detector.manifest.normalisation, fusion=fusion)
        detector = detector.with_normalisation(norm)
    found = []
    for index, image in enumerate(images):
        raw = detector.raw(image[None])
        found.append(summary(raw.scores[0], raw.maps[0]))
        progress(index + 1, len(images), "thresholds")
    score, map_scale = RawValues.of(found).scales(rule)
    return Normalisation(
        stage, f"{rule} on {len(images)} held-out normal images", score, map_scale, tile_score, tile_map, fusion
    )


def _fusion(detector: Detector, images: NDArray[np.uint8], rule: str, progress: Progress) -> Fusion:
    """Scales of the merged tiles and of the global model; ``detector`` does not fuse yet."""
    tiles, whole = [], []
    for index, image in enumerate(images):
        raw = detector.raw(image[None])
        assert raw.global_scores is not None  # the setup has a global model
        assert raw.global_maps is not None
        tiles.append(summary(raw.scores[0], raw.maps[0]))
        whole.append(summary(raw.global_scores[0], raw.global_maps[0]))
        progress(index + 1, len(images), "fusion")
    return Fusion(*RawValues.of(tiles).scales(rule), *RawValues.of(whole).scales(rule))


def _tile_scales(
    detector: Detector, images: NDArray[np.uint8], rule: str, progress: Progress
) -> tuple[tuple[Scale, ...], tuple[Scale, ...]]:
    """Scales of scores and of maps per tile, in grid order."""
    statistics = []  # per image and tile
    for index, image in enumerate(images):
        statistics.append([summary(scores[0], maps[0]) for _, scores, maps in detector.tiles(image[None])])
        progress(index + 1, len(images), "thresholds per tile")
    scales = [RawValues.of(tile).scales(rule) for tile in zip(*statistics, strict=True)]
    return widened([score for score, _ in scales]), widened([map_scale for _, map_scale in scales])


def widened(scales: Sequence[Scale]) -> tuple[Scale, ...]:
    """Thresholds of tiles that never change, such as a saturated background, raised: to them any grain is a wonder.

    From ``low`` to ``threshold`` it is then at least `NARROWEST` of that distance on the median tile.
    """
    least = NARROWEST * float(np.median([scale.threshold - scale.low for scale in scales]))
    return tuple(Scale(scale.low, max(scale.threshold, scale.low + least)) for scale in scales)
