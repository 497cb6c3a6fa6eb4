"""Pixel-level metrics, exact, in the time of one sort (see `edge_ad.evaluation.pixel_pool`).

Symbols: P anomalous and Q normal pixels; R ground-truth regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import InputError, UndefinedMetricError
from edge_ad.evaluation.curve import Curve
from edge_ad.evaluation.pixel_pool import CONNECTIVITY, PixelPool, Ranking, RegionPixels, label_regions, pool_pixels

PRO_LIMIT = 0.3


@dataclass(frozen=True)
class PixelMetrics:
    """How well raw anomaly maps find the ground-truth regions, all images pooled; a pixel counts from ``>=`` on.

    Attributes:
        auroc: area under the ROC curve; ties count one half.
        aupr: average precision: the step sum, not the trapezoid, which is optimistic between points.
        f1_max: largest F1 over all thresholds, an oracle on these very images; at ``f1_max_threshold``.
        aupro: area under the per-region-overlap curve up to a false-positive rate of ``pro_limit``, divided by it.
        pro_limit, connectivity: what ``aupro`` means; limits are not comparable with each other.
        regions: number of ground-truth regions.
        normal, anomalous: number of pixels.
    """

    auroc: float
    aupr: float
    f1_max: float
    f1_max_threshold: float
    aupro: float
    pro_limit: float
    connectivity: int
    regions: int
    normal: int
    anomalous: int


@dataclass(frozen=True, eq=False)
class PixelCurves:
    """Recall over false-positive rate, precision over recall, mean region overlap over false-positive rate."""

    roc: Curve
    precision_recall: Curve
    pro: Curve


def pixel_metrics(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], pro_limit: float = PRO_LIMIT
) -> tuple[PixelMetrics, PixelCurves]:
    """Metrics and curves of raw maps float32 (H, W) against masks bool (H, W); sizes may differ between images.

    Raises:
        NonFiniteValuesError, MaskSizeError: see `pool_pixels`.
        UndefinedMetricError, InputError: see `pooled_metrics`.
    """
    return pooled_metrics([pool_pixels(maps, [label_regions(mask) for mask in masks])], pro_limit)


def pooled_metrics(pools: Sequence[PixelPool], pro_limit: float = PRO_LIMIT) -> tuple[PixelMetrics, PixelCurves]:
    """Metrics and curves of all ``pools`` together.

    Source of AUPRO: Bergmann et al., The MVTec Anomaly Detection Dataset (IJCV 2021), section 4.2, and its evaluation
    code: a pixel outside all regions weighs 1 / Q in the false-positive rate, a pixel of region r weighs 1 / (|r| R) in
    the overlap, and equal values enter together. A constant map gives half of ``pro_limit``.

    Raises:
        UndefinedMetricError: no anomalous, or no normal pixel at all.
        InputError: ``pro_limit`` is not in (0, 1].
    """
    if not 0 < pro_limit <= 1:
        raise InputError(f"expected a PRO limit in (0, 1], but got {pro_limit}")
    pixels = RegionPixels.joined([pool.connected for pool in pools])
    anomalous, normal = len(pixels.values), sum(len(pool.normal) for pool in pools)
    if not anomalous or not normal:
        raise UndefinedMetricError(
            f"pixel metrics need normal and anomalous pixels, but all {anomalous + normal} are "
            + ("anomalous" if anomalous else "normal: no mask marks a region")
        )
    ranking = Ranking.of(pixels.values, [pool.normal for pool in pools])
    true_positives = ranking.last + 1
    predicted = true_positives + ranking.reached
    recall, precision = true_positives / anomalous, true_positives / predicted
    f1 = 2 * true_positives / (predicted + anomalous)
    curves = PixelCurves(
        roc=ranking.curve(recall),
        precision_recall=Curve(recall, precision),
        pro=ranking.overlap(pixels.shares, pixels.regions),
    )
    metrics = PixelMetrics(
        auroc=curves.roc.area(),
        aupr=float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        f1_max=float(f1.max()),
        f1_max_threshold=float(ranking.values[f1.argmax()]),
        aupro=curves.pro.area(pro_limit),
        pro_limit=pro_limit,
        connectivity=CONNECTIVITY,
        regions=pixels.regions,
        normal=normal,
        anomalous=anomalous,
    )
    return metrics, curves
