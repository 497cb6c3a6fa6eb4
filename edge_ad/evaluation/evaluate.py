"""Runs a detector over a test set and measures it. Metrics are taken on raw merged values: clipping would make ties."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.layouts import Sample, read_masks
from edge_ad.data.saturation import DefectsConfig, Region, read_regions
from edge_ad.errors import InputError
from edge_ad.evaluation.curve import Curve
from edge_ad.evaluation.image_metrics import ImageCurves, ImageMetrics, check_labels, image_auroc, image_metrics
from edge_ad.evaluation.mask_metrics import MaskMetrics
from edge_ad.evaluation.pixel_metrics import PRO_LIMIT, PixelCurves, PixelMetrics, pooled_metrics
from edge_ad.evaluation.pixel_pool import NOT_COUNTED, pool_pixels, regions_and_lost
from edge_ad.evaluation.spro import SPRO_LIMIT, SproMetrics, spro_metrics
from edge_ad.imaging import image_size, resize_map, resize_mask
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

MEAN_OF_KINDS = "mean of kinds"
_NORMAL = ""  # no folder, hence no kind of defect, has this name


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
class SproEvaluation:
    """Metrics of regions that need not be found whole, and their curves by kind of defect.

    ``lost_regions`` is the number of masks that vanish at the size of the comparison, and are not counted.
    """

    metrics: SproMetrics
    curves: dict[str, Curve]
    lost_regions: int


@dataclass(frozen=True, eq=False)
class PixelEvaluation:
    """Pixel-level metrics, and at what resolution they hold.

    Attributes:
        metrics, curves: of all images pooled.
        aupro_by_defect: AUPRO of the images of each kind of defect and all normal ones; a kind all of whose masks
            vanish is left out.
        spro: None where the data set does not say how much of a region must be found.
        size: (height, width) of the comparison: maps resized linearly, masks by the nearest pixel, after their regions
            were told apart.
        lost_regions: how many regions vanish at ``size`` and are not counted: choose a larger one where it is not 0.
        mask: of the masks at ``map_threshold``, a raw map value; both None where none was given.
        inside: fraction of the image inside the region of interest, which alone is compared; None without one.
        outside_regions: how many regions lie outside of it wholly, and are not counted.
    """

    metrics: PixelMetrics
    curves: PixelCurves
    aupro_by_defect: dict[str, float]
    spro: SproEvaluation | None
    size: Size
    lost_regions: int
    mask: MaskMetrics | None
    map_threshold: float | None
    inside: float | None = None
    outside_regions: int = 0


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
    """Run ``images`` uint8 (N, H, W, 3) RGB, ``batch_size`` at a time. Raises what the predictor raises."""
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
    map_threshold: float | None = None,
    inside: NDArray[np.bool_] | None = None,
    batch_size: int = 1,
    metrics_size: Size | None = None,
    pro_limit: float = PRO_LIMIT,
    defects_config: DefectsConfig | None = None,
    spro_limit: float = SPRO_LIMIT,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a predictor on a test set.

    Args:
        predictor: gives raw scores and maps.
        images: uint8 (N, H, W, 3) RGB at the predictor's size.
        samples: the N test samples, in order.
        threshold: of raw image scores, fixed beforehand.
        map_threshold: of raw maps, fixed beforehand; masks are not measured where None.
        inside: (H, W) true in the region of interest; pixels outside of it, where nothing can be found and no alarm be
            raised, are not compared. Everywhere where None.
        batch_size: images per call of the predictor.
        metrics_size: (H, W) where pixels are compared; the predictor's image size where None.
        pro_limit, spro_limit: false-positive rates up to which AUPRO and AU-sPRO integrate.
        defects_config: how much of a region must be found (`defects_config_of`); no AU-sPRO where None.

    Raises:
        UndefinedMetricError: only normal, or only anomalous images or pixels.
        MaskSizeError: a mask and its image differ.
        DefectsConfigError: see `read_regions`.
        NonFiniteValuesError: a score or map is not finite.
        InputError: as many images as samples were expected; or a limit is not in (0, 1].
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
        pixel=_pixels(
            predictions.maps,
            samples,
            metrics_size or predictor.image_size,
            map_threshold,
            inside,
            pro_limit,
            defects_config,
            spro_limit,
        ),
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


def mean_of_kinds(by_defect: Mapping[str, float]) -> float:
    """The mean of a figure over kinds of defect, each of equal weight: as MVTec LOCO AD is reported."""
    return statistics.fmean(by_defect.values())


def _pixels(
    maps: NDArray[np.float32],
    samples: Sequence[Sample],
    size: Size,
    map_threshold: float | None,
    inside: NDArray[np.bool_] | None,
    pro_limit: float,
    defects_config: DefectsConfig | None,
    spro_limit: float,
) -> PixelEvaluation | None:
    if not any(sample.masks for sample in samples):
        return None
    kinds: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        kinds.setdefault(sample.defect if sample.label else _NORMAL, []).append(index)
    region = None if inside is None else resize_mask(inside, size)
    pools, lost, outside, spro_outside, mask = {}, 0, 0, 0, None
    for kind, chosen in sorted(kinds.items()):
        labelled = [regions_and_lost(_mask_of(samples[index], size), size) for index in chosen]
        labels = [each for each, _ in labelled]
        lost += sum(vanished for _, vanished in labelled)
        regions = [_regions(samples[index], size, defects_config) for index in chosen]
        if region is not None:
            outside += sum(_leave_out(each, ~region) for each in labels)
            within = [[part for each in of_image if (part := each.within(region))] for of_image in regions]
            spro_outside += sum(map(len, regions)) - sum(map(len, within))
            regions = within
        resized = [resize_map(maps[index], size) for index in chosen]
        pools[kind] = pool_pixels(resized, labels, regions)
        if map_threshold is not None:
            for anomaly_map, each in zip(resized, labels, strict=True):
                found = MaskMetrics.of(anomaly_map, each, map_threshold, is_normal=kind == _NORMAL)
                mask = found if mask is None else mask + found
    metrics, curves = pooled_metrics(list(pools.values()), pro_limit)
    normal = pools.pop(_NORMAL)
    aupro_by_defect = {
        kind: pooled_metrics([normal, pool], pro_limit)[0].aupro
        for kind, pool in pools.items()
        if pool.connected.regions
    }
    spro = None
    if defects_config is not None:
        spro_found, spro_curves = spro_metrics(normal, pools, spro_limit)
        spro_lost = sum(len(sample.masks) for sample in samples) - spro_found.regions - spro_outside
        spro = SproEvaluation(spro_found, spro_curves, spro_lost)
    share = None if region is None else float(region.mean())
    return PixelEvaluation(metrics, curves, aupro_by_defect, spro, size, lost, mask, map_threshold, share, outside)


def _leave_out(labels: NDArray[np.int32], outside: NDArray[np.bool_]) -> int:
    """Mark what of ``labels`` is ``outside`` as not counted, in place; how many regions are gone."""
    before = np.unique(labels[labels > 0])
    labels[outside] = NOT_COUNTED
    return len(before) - len(np.unique(labels[labels > 0]))


def _regions(sample: Sample, size: Size, config: DefectsConfig | None) -> list[Region]:
    if config is None or not sample.masks:
        return []
    return read_regions(sample, image_size(sample.path), config, size)


def _mask_of(sample: Sample, size: Size) -> NDArray[np.bool_]:
    """The union of its masks at their own size; of ``size`` and empty where it has none."""
    return read_masks(sample, image_size(sample.path)) if sample.masks else np.zeros(size, bool)


def _labels(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    return np.array([bool(sample.label) for sample in samples])
