from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.errors import InputError, NonFiniteValuesError, UndefinedMetricError
from edge_ad.evaluation.image_metrics import Confusion, image_auroc, image_metrics

#          score   1  2  3  3  4        pairs won: 4 beats 1, 2, 3; 3 beats 1, 2 and ties with 3 (one half)
#          label   0  0  0  1  1
SCORES, LABELS = np.array([1, 2, 3, 3, 4], np.float32), np.array([0, 0, 0, 1, 1])


def test_a_case_by_hand():
    metrics, curves = image_metrics(SCORES, LABELS, 2)
    assert metrics.auroc == pytest.approx((3 + 2.5) / 6)
    assert metrics.aupr == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.f1_max == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.f1_max_threshold == 3
    # Predicted at 2 or above: four images, two of them anomalous
    assert metrics.confusion == Confusion(true_positives=2, false_positives=2, false_negatives=0, true_negatives=1)
    assert (metrics.precision, metrics.recall, metrics.f1) == pytest.approx((0.5, 1, 2 / 3))
    assert (metrics.normal, metrics.anomalous, metrics.threshold) == (3, 2, 2)
    assert curves.roc.area() == pytest.approx(metrics.auroc)
    assert np.all(np.diff(curves.precision_recall.x) >= 0)


def test_a_threshold_above_all_scores_finds_nothing_and_is_no_error():
    metrics, _ = image_metrics(SCORES, LABELS, 5)
    assert (metrics.precision, metrics.recall, metrics.f1) == (0, 0, 0)
    assert metrics.confusion == Confusion(0, 0, 2, 3)


def test_a_threshold_between_two_float32_numbers_is_not_rounded_onto_one():
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    metrics, _ = image_metrics(np.array([low, high]), [0, 1], float(low) + 0.25 * float(high - low))
    assert metrics.confusion == Confusion(1, 0, 0, 1)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=20))
def test_f1_max_and_auroc_equal_a_loop(images: list[tuple[int, bool]]):
    scores, labels = np.array([s for s, _ in images], float), np.array([a for _, a in images])
    if labels.all() or not labels.any():
        return
    metrics, _ = image_metrics(scores, labels, 3)
    f1 = {t: 2 * (labels & (scores >= t)).sum() / ((scores >= t).sum() + labels.sum()) for t in scores.tolist()}
    assert metrics.f1_max == pytest.approx(max(f1.values()))
    assert f1[metrics.f1_max_threshold] == pytest.approx(max(f1.values()))
    pairs = [(a > n) + 0.5 * (a == n) for a in scores[labels] for n in scores[~labels]]
    assert metrics.auroc == pytest.approx(np.mean(pairs))
    assert image_auroc(10 * scores + 3, labels) == pytest.approx(metrics.auroc)


@pytest.mark.parametrize(("label", "kind"), [(0, "normal"), (1, "anomalous")])
def test_one_kind_of_image_is_refused(label: int, kind: str):
    with pytest.raises(UndefinedMetricError, match=f"all 5 test images are {kind}"):
        image_metrics(SCORES, np.full(5, label), 2)


def test_scores_that_are_not_finite_or_not_as_many_as_labels_are_refused():
    with pytest.raises(NonFiniteValuesError, match="the score of image 1 is NaN or infinite"):
        image_auroc([1, np.nan, 2], [0, 1, 0])
    with pytest.raises(InputError, match="expected one score per label"):
        image_auroc([1, 2], [0, 1, 0])
