"""Thresholds and scales of a detector, fitted on held-out normal images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Normalisation, NormalisationStage, Scale
from edge_ad.evaluation.thresholds import fit_scales
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.detector import Detector


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
    scores, maxima, medians = [], [], []
    for index, image in enumerate(images):
        raw = detector.raw(image[None])
        scores.append(float(raw.scores[0]))
        maxima.append(float(raw.maps[0].max()))
        medians.append(float(np.median(raw.maps[0])))
        progress(index + 1, len(images), "thresholds")
    score, map_scale = fit_scales(rule, np.array(scores), np.array(maxima), float(np.median(medians)))
    return Normalisation(
        stage, f"{rule} on {len(images)} held-out normal images", score, map_scale, tile_score, tile_map
    )


def _tile_scales(
    detector: Detector, images: NDArray[np.uint8], rule: str, progress: Progress
) -> tuple[tuple[Scale, ...], tuple[Scale, ...]]:
    """Scales of scores and of maps per tile, in grid order."""
    statistics = []  # per image and tile: score, map maximum, map median
    for index, image in enumerate(images):
        statistics.append(
            [
                (float(scores[0]), float(maps[0].max()), float(np.median(maps[0])))
                for _, scores, maps in detector.tiles(image[None])
            ]
        )
        progress(index + 1, len(images), "thresholds per tile")
    table = np.array(statistics)  # (images, tiles, 3)
    scales = [fit_scales(rule, tile[:, 0], tile[:, 1], float(np.median(tile[:, 2]))) for tile in table.swapaxes(0, 1)]
    return tuple(score for score, _ in scales), tuple(map_scale for _, map_scale in scales)
