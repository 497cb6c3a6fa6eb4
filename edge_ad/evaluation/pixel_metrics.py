"""Pixel-level metrics, exact, in the time of one sort.

A set of a hundred images has tens of millions of pixels, of which perhaps one in a hundred is anomalous. Recall and
region overlap change only at the values of anomalous pixels, so every curve is straight between them: the anomalous
pixels are ranked, and of the normal ones it is enough to count how many lie above each anomalous value, which a sort
of their bare values tells. No bins, no sampled thresholds.

Symbols: P anomalous and Q normal pixels; K distinct values of anomalous pixels; R ground-truth regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import InputError, MaskSizeError, NonFiniteValuesError, UndefinedMetricError
from edge_ad.evaluation.curve import Curve
from edge_ad.tiling import format_size

PRO_LIMIT = 0.3
CONNECTIVITY = 8


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

    Source of AUPRO: Bergmann et al., The MVTec Anomaly Detection Dataset (IJCV 2021), section 4.2, and its evaluation
    code: a pixel outside all regions weighs 1 / Q in the false-positive rate, a pixel of region r weighs 1 / (|r| R) in
    the overlap, and equal values enter together. A constant map gives half of ``pro_limit``.

    Raises:
        NonFiniteValuesError: a map holds NaN or infinity.
        MaskSizeError: a mask and its map differ in size.
        UndefinedMetricError: no anomalous, or no normal pixel at all.
        InputError: ``pro_limit`` is not in (0, 1].
    """
    if not 0 < pro_limit <= 1:
        raise InputError(f"expected a PRO limit in (0, 1], but got {pro_limit}")
    pixels = _pool(maps, masks)
    anomalous, normal = len(pixels.anomalous), len(pixels.normal)
    order = np.argsort(-pixels.anomalous)
    ranked = pixels.anomalous[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal values enter together
    values = ranked[last]
    true_positives = last + 1
    false_positives = normal - np.searchsorted(pixels.normal, values, side="left")
    above = normal - np.searchsorted(pixels.normal, values, side="right")
    predicted = true_positives + false_positives
    recall, precision = true_positives / anomalous, true_positives / predicted
    overlap = np.minimum(np.cumsum(pixels.weight[order])[last], 1.0)
    f1 = 2 * true_positives / (predicted + anomalous)
    curves = PixelCurves(
        roc=_vertices(above / normal, false_positives / normal, recall),
        precision_recall=Curve(recall, precision),
        pro=_vertices(above / normal, false_positives / normal, overlap),
    )
    metrics = PixelMetrics(
        auroc=curves.roc.area(),
        aupr=float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        f1_max=float(f1.max()),
        f1_max_threshold=float(values[f1.argmax()]),
        aupro=curves.pro.area(pro_limit),
        pro_limit=pro_limit,
        connectivity=CONNECTIVITY,
        regions=pixels.regions,
        normal=normal,
        anomalous=anomalous,
    )
    return metrics, curves


@dataclass(frozen=True, eq=False)
class _Pixels:
    """All pixels of a set: ``normal`` (Q,) values ascending; ``anomalous`` (P,) values, and what each adds to PRO."""

    normal: NDArray[np.float32]
    anomalous: NDArray[np.float32]
    weight: NDArray[np.float64]
    regions: int


def _pool(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> _Pixels:
    total, anomalous_total = sum(mask.size for mask in masks), sum(int(np.count_nonzero(mask)) for mask in masks)
    if anomalous_total in (0, total):
        raise UndefinedMetricError(
            f"pixel metrics need normal and anomalous pixels, but all {total} are "
            + ("anomalous" if anomalous_total else "normal: no mask marks a region")
        )
    normal = np.empty(total - anomalous_total, np.float32)
    anomalous, region_sizes, regions, filled = [], [], 0, 0
    for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        if anomaly_map.shape != mask.shape:
            raise MaskSizeError(
                f"anomaly map {index} is {format_size(anomaly_map.shape)}, but its mask {format_size(mask.shape)}"
            )
        if not np.isfinite(anomaly_map).all():
            raise NonFiniteValuesError(f"anomaly map {index} holds NaN or infinity")
        outside = anomaly_map.ravel()
        if mask.any():
            count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=CONNECTIVITY)
            anomalous.append(anomaly_map[mask])
            region_sizes.append(stats[labels[mask], cv2.CC_STAT_AREA])
            regions += count - 1  # label 0 is the background
            outside = anomaly_map[~mask]
        normal[filled : filled + outside.size] = outside
        filled += outside.size
    normal.sort()
    return _Pixels(normal, np.concatenate(anomalous), 1.0 / (np.concatenate(region_sizes) * float(regions)), regions)


def _vertices(above: NDArray[np.float64], at: NDArray[np.float64], height: NDArray[np.float64]) -> Curve:
    """From (0, 0) to (1, 1) over K values: flat up to the false-positive rate ``above`` the value, then straight to
    (``at``, ``height``): vertical unless normal pixels tie with it."""
    before = np.concatenate(([0.0], height[:-1]))
    x = np.concatenate(([0.0], np.stack((above, at), axis=1).ravel(), [1.0]))
    y = np.concatenate(([0.0], np.stack((before, height), axis=1).ravel(), [1.0]))
    return Curve(x, y)
