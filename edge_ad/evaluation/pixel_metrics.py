"""Pixel-level metrics from one sort of all pixels.

A set of a hundred images has tens of millions of pixels. ROC, precision-recall and per-region-overlap curves are all
running sums over the pixels in descending order of their value, so the order is computed once. Exact: no bins.

Symbols: K distinct pixel values, descending; P anomalous and Q normal pixels; R ground-truth regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import NonFiniteValuesError, UndefinedMetricError

PRO_LIMIT = 0.3
CONNECTIVITY = 8


@dataclass(frozen=True)
class PixelCurves:
    """Running sums at each distinct value, all pixels with at least that value counted as predicted.

    Attributes:
        values: (K,) float32, descending.
        false_positive_rate: (K,) of the Q pixels outside all regions.
        true_positive_rate: (K,) of the P pixels inside regions: recall.
        precision: (K,).
        region_overlap: (K,) mean over the R regions of the fraction covered.
    """

    values: NDArray[np.float32]
    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    precision: NDArray[np.float64]
    region_overlap: NDArray[np.float64]


@dataclass(frozen=True)
class PixelMetrics:
    """How well raw anomaly maps find the ground-truth regions, all images pooled.

    Attributes:
        auroc, aupr, f1_max: as for images, per pixel; ``aupr`` is average precision.
        aupro: area under the per-region-overlap curve up to a false-positive rate of ``pro_limit``, divided by it.
        pro_limit, connectivity: what ``aupro`` means; limits are not comparable with each other.
        regions: number of ground-truth regions.
    """

    auroc: float
    aupr: float
    f1_max: float
    aupro: float
    pro_limit: float
    connectivity: int
    regions: int


def pixel_metrics(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], pro_limit: float = PRO_LIMIT
) -> tuple[PixelMetrics, PixelCurves]:
    """Metrics and curves of raw maps (H, W) against masks (H, W); sizes may differ from image to image.

    Raises:
        NonFiniteValuesError: a map holds NaN or infinity.
        UndefinedMetricError: no anomalous, or no normal pixel at all.
    """
    curves, regions = pixel_curves(maps, masks)
    fpr, tpr, precision = curves.false_positive_rate, curves.true_positive_rate, curves.precision
    f1 = 2 * precision * tpr / np.maximum(precision + tpr, 1e-12)
    metrics = PixelMetrics(
        auroc=area_under(fpr, tpr, 1.0),
        aupr=float(np.sum(np.diff(tpr, prepend=0.0) * precision)),
        f1_max=float(f1.max()),
        aupro=area_under(fpr, curves.region_overlap, pro_limit),
        pro_limit=pro_limit,
        connectivity=CONNECTIVITY,
        regions=regions,
    )
    return metrics, curves


def pixel_curves(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> tuple[PixelCurves, int]:
    """The curves, and the number of regions. Raises as `pixel_metrics`.

    Source: the evaluation code of MVTec AD: every pixel outside all regions weighs 1 / Q in the false-positive rate,
    every pixel of region r weighs 1 / (|r| R) in the overlap, and of equal values only the last point stays.
    """
    values, sizes, regions = [], [], 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if not np.isfinite(anomaly_map).all():
            raise NonFiniteValuesError(f"anomaly map {len(values)} holds NaN or infinity")
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=CONNECTIVITY)
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.int32)
        areas[0] = 0  # the background
        values.append(anomaly_map.ravel())
        sizes.append(areas[labels].ravel())
        regions += count - 1
    pooled, region_px = np.concatenate(values).astype(np.float32, copy=False), np.concatenate(sizes)
    anomalous = int(np.count_nonzero(region_px))
    normal = len(pooled) - anomalous
    if not anomalous or not normal:
        raise UndefinedMetricError(
            f"pixel metrics need normal and anomalous pixels, but all {len(pooled)} are "
            + ("normal: no mask marks a region" if normal else "anomalous")
        )
    order = np.argsort(-pooled)
    ranked, ranked_px = pooled[order], region_px[order]
    del order, pooled, region_px
    hits = ranked_px > 0
    # Of equal values, only the point after the last one is on the curve
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true_positives = np.cumsum(hits, dtype=np.int64)[last]
    weight = np.zeros(len(ranked_px))
    np.divide(1.0 / regions, ranked_px, out=weight, where=hits)
    curves = PixelCurves(
        values=ranked[last],
        false_positive_rate=(last + 1 - true_positives) / normal,
        true_positive_rate=true_positives / anomalous,
        precision=true_positives / (last + 1),
        region_overlap=np.minimum(np.cumsum(weight)[last], 1.0),
    )
    return curves, regions


def area_under(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoidal area under the curve from (0, 0) through ascending ``x`` up to ``limit``, divided by ``limit``.

    The point at the limit is interpolated linearly.

    >>> area_under(np.array([0.5, 1.0]), np.array([1.0, 1.0]), 0.25)
    0.25
    """
    x, y = np.r_[0.0, x, 1.0], np.r_[0.0, y, 1.0]
    inside = x < limit
    x_in, y_in = np.r_[x[inside], limit], np.r_[y[inside], np.interp(limit, x, y)]
    return float(np.trapezoid(y_in, x_in) / limit)
