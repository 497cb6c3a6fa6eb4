"""Runs a detector over a test set and measures it. Metrics are taken on raw merged values: clipping would make ties."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.layouts import Sample, read_masks
from edge_ad.errors import InputError
from edge_ad.evaluation.image_metrics import ImageCurves, ImageMetrics, check_labels, image_auroc, image_metrics
from edge_ad.evaluation.pixel_metrics import PRO_LIMIT, PixelCurves, PixelMetrics, pixel_metrics
from edge_ad.imaging import image_size, resize_map
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size


class RawOutputs(Protocol):
    """What a predictor gives for B images of (H, W)."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(B,) raw image scores."""

    @property
    def maps(self) -> NDArray[np.float32]:
        """(B, H, W) raw anomaly maps."""


class Predictor(Protocol):
    """Whatever gives raw scores and maps: a `Detector` over a bundle or over a run."""

    @property
    def image_size(self) -> Size:
        """(H, W) of the images it takes."""

    def raw(self, images: NDArray[np.uint8]) -> RawOutputs:
        """Scores and maps of ``images`` uint8 (B, H, W, 3) RGB."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Raw outputs over a test set of N images.

    Attributes:
        scores: (N,) float32.
        maps: (N, H, W) float32 at the predictor's size.
        ms_per_image: median over the calls of `Predictor.raw` of time over images, milliseconds.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    ms_per_image: float


@dataclass(frozen=True, eq=False)
class PixelEvaluation:
    """Pixel-level metrics, and at what resolution they hold.

    Attributes:
        metrics, curves: of all images pooled.
        size: (height, width) of the comparison: maps resized linearly, masks by the nearest pixel.
        lost_masks: number of anomalous images whose masks vanish at ``size``: choose a larger one where it is not 0.
    """

    metrics: PixelMetrics
    curves: PixelCurves
    size: Size
    lost_masks: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured over N samples, and how.

    Attributes:
        image, image_curves: image level.
        auroc_by_defect: image AUROC of each kind of defect against all normal images.
        pixel: pixel level, or None where the set has no masks.
        image_size: (height, width) at which the predictor ran.
        samples: the N samples in the order of ``predictions``.
    """

    image: ImageMetrics
    image_curves: ImageCurves
    auroc_by_defect: dict[str, float]
    pixel: PixelEvaluation | None
    image_size: Size
    samples: tuple[Sample, ...]
    predictions: Predictions

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(N,) True for anomalous."""
        return _labels(self.samples)


def predict(
    predictor: Predictor, images: NDArray[np.uint8], *, batch_size: int = 1, progress: Progress = no_progress
) -> Predictions:
    """Run ``images`` uint8 (N, H, W, 3) RGB, ``batch_size`` at a time."""
    scores = np.empty(len(images), np.float32)
    maps = np.empty((len(images), *predictor.image_size), np.float32)
    ms_per_image = []
    for first in range(0, len(images), batch_size):
        batch = slice(first, min(first + batch_size, len(images)))
        start = time.perf_counter()
        raw = predictor.raw(images[batch])
        ms_per_image.append((time.perf_counter() - start) * 1e3 / (batch.stop - first))
        scores[batch], maps[batch] = raw.scores, raw.maps
        progress(batch.stop, len(images), "evaluating")
    return Predictions(scores, maps, float(np.median(ms_per_image)))


def evaluate(
    predictor: Predictor,
    images: NDArray[np.uint8],
    samples: Sequence[Sample],
    *,
    threshold: float,
    batch_size: int = 1,
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
        batch_size: images per call of the predictor.
        metrics_size: (H, W) where pixels are compared; the predictor's image size where None.
        pro_limit: false-positive rate up to which AUPRO integrates.

    Raises:
        UndefinedMetricError: only normal, or only anomalous images or pixels.
        MaskSizeError: a mask and its image differ.
        NonFiniteValuesError: a score or map is not finite.
        InputError: as many images as samples were expected; or ``pro_limit`` is not in (0, 1].
    """
    if len(images) != len(samples):
        raise InputError(f"expected one image per sample, but got {len(images)} images and {len(samples)} samples")
    labels = check_labels(_labels(samples))
    predictions = predict(predictor, images, batch_size=batch_size, progress=progress)
    image, image_curves = image_metrics(predictions.scores, labels, threshold)
    return Evaluation(
        image=image,
        image_curves=image_curves,
        auroc_by_defect=auroc_by_defect(predictions.scores, samples),
        pixel=_pixels(predictions.maps, samples, metrics_size or predictor.image_size, pro_limit),
        image_size=predictor.image_size,
        samples=tuple(samples),
        predictions=predictions,
    )


def auroc_by_defect(scores: NDArray[np.floating], samples: Sequence[Sample]) -> dict[str, float]:
    """Image AUROC of each kind of defect against all normal images, from scores (N,)."""
    kinds = np.array([sample.defect if sample.label else "" for sample in samples])
    normal = kinds == ""
    found = {}
    for kind in sorted(set(kinds[~normal])):
        chosen = normal | (kinds == kind)
        found[str(kind)] = image_auroc(scores[chosen], ~normal[chosen])
    return found


def _pixels(
    maps: NDArray[np.float32], samples: Sequence[Sample], size: Size, pro_limit: float
) -> PixelEvaluation | None:
    if not any(sample.masks for sample in samples):
        return None
    masks = [_mask(sample, size) for sample in samples]
    metrics, curves = pixel_metrics([resize_map(each, size) for each in maps], masks, pro_limit)
    lost = sum(bool(sample.masks) and not mask.any() for sample, mask in zip(samples, masks, strict=True))
    return PixelEvaluation(metrics, curves, size, lost)


def _mask(sample: Sample, size: Size) -> NDArray[np.bool_]:
    if not sample.masks:
        return np.zeros(size, bool)
    return read_masks(sample, image_size(sample.path), size)


def _labels(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    return np.array([bool(sample.label) for sample in samples])
