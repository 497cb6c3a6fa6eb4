"""Runs a detector over a test set and measures it. Metrics are taken on raw merged values: clipping would make ties."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.layouts import Sample, read_masks
from edge_ad.evaluation.image_metrics import ImageMetrics, image_metrics
from edge_ad.evaluation.pixel_metrics import PRO_LIMIT, PixelCurves, PixelMetrics, pixel_metrics
from edge_ad.imaging import read_image, resize_map
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size


class Predictor(Protocol):
    """Whatever gives raw scores and maps: a `Detector` over a bundle or over a run."""

    @property
    def image_size(self) -> Size:
        """(H, W) of the images it takes."""

    def raw(self, images: NDArray[np.uint8]) -> Any:
        """``.scores`` (B,) and ``.maps`` (B, H, W) of ``images`` uint8 (B, H, W, 3) RGB."""


@dataclass(frozen=True)
class Predictions:
    """Raw outputs over a test set of N images.

    Attributes:
        scores: (N,) float32.
        maps: (N, H, W) float32 at the predictor's size.
        ms_per_image: median time of `Predictor.raw`, milliseconds.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    ms_per_image: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how.

    Attributes:
        image: image-level metrics.
        auroc_by_defect: image AUROC of each kind of defect against all normal images.
        pixel: pixel-level metrics, or None where the set has no masks.
        metrics_size: (height, width) at which pixels were compared: maps resized linearly, masks by nearest pixel.
        ms_per_image: median time of the detector per image.
        pixel_curves: for plots; not part of the JSON.
    """

    image: ImageMetrics
    auroc_by_defect: dict[str, float]
    pixel: PixelMetrics | None
    metrics_size: Size
    ms_per_image: float
    predictions: Predictions
    labels: NDArray[np.bool_]
    pixel_curves: PixelCurves | None


def predict(predictor: Predictor, images: NDArray[np.uint8], progress: Progress = no_progress) -> Predictions:
    """Run ``images`` uint8 (N, H, W, 3) RGB one by one."""
    scores = np.empty(len(images), np.float32)
    maps = np.empty((len(images), *predictor.image_size), np.float32)
    elapsed_ms = []
    for index, image in enumerate(images):
        start = time.perf_counter()
        raw = predictor.raw(image[None])
        elapsed_ms.append((time.perf_counter() - start) * 1e3)
        scores[index], maps[index] = raw.scores[0], raw.maps[0]
        progress(index + 1, len(images), "evaluating")
    return Predictions(scores, maps, float(np.median(elapsed_ms)))


def evaluate(
    predictor: Predictor,
    images: NDArray[np.uint8],
    samples: Sequence[Sample],
    *,
    threshold: float,
    metrics_size: Size | None = None,
    pro_limit: float = PRO_LIMIT,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a predictor on a test set.

    Args:
        predictor: gives raw scores and maps.
        images: uint8 (N, H, W, 3) RGB at the predictor's size.
        samples: the N test samples, in order.
        threshold: of raw image scores, fixed beforehand.
        metrics_size: where pixels are compared; the predictor's image size where None.
        pro_limit: false-positive rate up to which AUPRO integrates.

    Raises:
        UndefinedMetricError: only normal, or only anomalous images or pixels.
        MaskSizeError: a mask and its image differ.
    """
    labels = np.array([bool(sample.label) for sample in samples])
    predictions = predict(predictor, images, progress)
    size = metrics_size or predictor.image_size
    pixel, curves = None, None
    if any(sample.masks for sample in samples):
        masks = [_mask(sample, size) for sample in samples]
        pixel, curves = pixel_metrics([resize_map(m, size) for m in predictions.maps], masks, pro_limit)
    kinds = sorted({sample.defect for sample in samples if sample.label})
    by_defect = {}
    for kind in kinds:
        chosen = np.array([not sample.label or sample.defect == kind for sample in samples])
        by_defect[kind] = image_metrics(predictions.scores[chosen], labels[chosen], threshold).auroc
    return Evaluation(
        image=image_metrics(predictions.scores, labels, threshold),
        auroc_by_defect=by_defect,
        pixel=pixel,
        metrics_size=size,
        ms_per_image=predictions.ms_per_image,
        predictions=predictions,
        labels=labels,
        pixel_curves=curves,
    )


def _mask(sample: Sample, size: Size) -> NDArray[np.bool_]:
    if not sample.masks:
        return np.zeros(size, bool)
    height, width = read_image(sample.path).shape[:2]
    return read_masks(sample, (height, width), size)
