"""Image-level metrics, by scikit-learn.

Symbols: N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from edge_ad.errors import UndefinedMetricError


@dataclass(frozen=True)
class ImageMetrics:
    """How well image scores separate anomalous from normal images.

    Attributes:
        auroc: area under the ROC curve; ties count one half.
        aupr: average precision: the step sum, not the trapezoid, which is optimistic between points.
        f1_max: largest F1 over all thresholds, an oracle on these very images; at ``f1_max_threshold``.
        f1, precision, recall: at ``threshold``, which was fixed before.
        normal, anomalous: number of images.
    """

    auroc: float
    aupr: float
    f1_max: float
    f1_max_threshold: float
    threshold: float
    f1: float
    precision: float
    recall: float
    normal: int
    anomalous: int


def image_metrics(scores: NDArray[np.floating], labels: NDArray[np.bool_], threshold: float) -> ImageMetrics:
    """Metrics of raw image scores (N,) against labels (N,), True for anomalous; predicted where score >= threshold.

    Raises:
        UndefinedMetricError: only normal, or only anomalous images.
    """
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        kind = "anomalous" if labels.any() else "normal"
        raise UndefinedMetricError(f"all {len(labels)} test images are {kind}; metrics need both kinds")
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    best = int(f1.argmax())
    at_precision, at_recall, at_f1, _ = precision_recall_fscore_support(
        labels, scores >= threshold, average="binary", zero_division=0.0
    )
    return ImageMetrics(
        auroc=float(roc_auc_score(labels, scores)),
        aupr=float(average_precision_score(labels, scores)),
        f1_max=float(f1[best]),
        f1_max_threshold=float(thresholds[best]),
        threshold=float(threshold),
        f1=float(at_f1),
        precision=float(at_precision),
        recall=float(at_recall),
        normal=int((~labels).sum()),
        anomalous=int(labels.sum()),
    )
