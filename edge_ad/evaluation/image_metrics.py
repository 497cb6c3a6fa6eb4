"""Image-level metrics, by scikit-learn.

Symbols: N images; an image is predicted anomalous where its score is at the threshold or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from edge_ad.errors import InputError, NonFiniteValuesError, UndefinedMetricError
from edge_ad.evaluation.curve import Curve


@dataclass(frozen=True)
class Confusion:
    """Numbers of images at a threshold; positive is anomalous."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True)
class ImageMetrics:
    """How well image scores separate anomalous from normal images.

    Attributes:
        auroc: area under the ROC curve; ties count one half.
        aupr: average precision: the step sum, not the trapezoid, which is optimistic between points.
        f1_max: largest F1 over all thresholds, an oracle on these very images; at ``f1_max_threshold``.
        f1, precision, recall, confusion: at ``threshold``, which was fixed before.
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
    confusion: Confusion
    normal: int
    anomalous: int


@dataclass(frozen=True, eq=False)
class ImageCurves:
    """Recall over false-positive rate, and precision over recall."""

    roc: Curve
    precision_recall: Curve


def image_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[ImageMetrics, ImageCurves]:
    """Metrics and curves of raw image scores (N,) against labels (N,), true for anomalous.

    Raises:
        UndefinedMetricError: only normal, or only anomalous images.
        NonFiniteValuesError: a score is NaN or infinite.
    """
    scores, labels = _checked(scores, labels)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)  # the last has no threshold
    predicted = scores >= threshold
    at_precision, at_recall, at_f1, _ = precision_recall_fscore_support(
        labels, predicted, average="binary", zero_division=0.0
    )
    true_negatives, false_positives, false_negatives, true_positives = confusion_matrix(labels, predicted).ravel()
    metrics = ImageMetrics(
        auroc=float(roc_auc_score(labels, scores)),
        aupr=float(average_precision_score(labels, scores)),
        f1_max=float(f1.max()),
        f1_max_threshold=float(thresholds[f1.argmax()]),
        threshold=float(threshold),
        f1=float(at_f1),
        precision=float(at_precision),
        recall=float(at_recall),
        confusion=Confusion(int(true_positives), int(false_positives), int(false_negatives), int(true_negatives)),
        normal=int((~labels).sum()),
        anomalous=int(labels.sum()),
    )
    fpr, tpr, _ = roc_curve(labels, scores)
    return metrics, ImageCurves(Curve(fpr, tpr), Curve(recall[::-1], precision[::-1]))


def image_auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """AUROC alone. Arguments and errors as of `image_metrics`."""
    scores, labels = _checked(scores, labels)
    return float(roc_auc_score(labels, scores))


def check_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    """``labels`` (N,) as bool. Raises `UndefinedMetricError` where they are all normal, or all anomalous."""
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        kind = "anomalous" if labels.any() else "normal"
        raise UndefinedMetricError(f"all {len(labels)} test images are {kind}; metrics need both kinds")
    return labels


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    # In float64: float32 scores would round the threshold they are compared with
    scores, labels = np.asarray(scores, np.float64), check_labels(labels)
    if scores.shape != labels.shape:
        raise InputError(f"expected one score per label, but got {scores.shape} scores and {labels.shape} labels")
    if not np.isfinite(scores).all():
        raise NonFiniteValuesError(f"the score of image {int(np.argmin(np.isfinite(scores)))} is NaN or infinite")
    return scores, labels
