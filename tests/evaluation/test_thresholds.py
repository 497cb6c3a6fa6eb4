from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.bundle.manifest import Scale
from edge_ad.errors import InputError, NonFiniteValuesError, TooFewImagesError, UndefinedMetricError
from edge_ad.evaluation.thresholds import (
    DEFAULT_RULE,
    Statistic,
    ThresholdRule,
    f1_threshold,
    fit_scales,
    make_scale,
)

VALUES = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]  # mean 5, standard deviation 2


def fit(rule: str, values: object = VALUES, labels: object = None) -> float:
    return ThresholdRule.parse(rule).fit(values, labels)


def above(value: float) -> float:
    """The next float32: what lies at a threshold is anomalous, and the largest normal value must not be."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def test_rules_by_hand():
    assert fit("sigma:3") == fit(DEFAULT_RULE) == pytest.approx(5 + 3 * 2)
    assert fit("sigma:0.5") == pytest.approx(6)
    assert fit("quantile:0.5") == pytest.approx(4.5)
    assert fit("max") == above(9)


@pytest.mark.parametrize("rule", ["sigma:3", "max"])
def test_images_that_are_all_alike_are_not_anomalous(rule: str):
    threshold = ThresholdRule.parse(rule).fit([2.0, 2.0, 2.0])
    assert 2 < threshold < 2.000001


def test_thresholds_are_float32_as_detectors_compare():
    """One float32 above the normal score: halfway between the two, in float64, would reject both in float32."""
    normal = 1.0
    threshold = fit("f1", [normal, above(normal)], [False, True])
    assert threshold == above(normal)
    for rule in ("sigma:3", "quantile:0.5", "max"):
        found = fit(rule, [0.1, 0.2, 0.7])
        assert found == float(np.float32(found))


@pytest.mark.parametrize("text", ["sigma:3", "sigma:2.5", "quantile:0.99", "quantile:0.9999999", "max", "f1"])
def test_a_rule_is_written_as_it_was_read(text: str):
    assert str(ThresholdRule.parse(text)) == text


def test_a_rule_as_a_value():
    assert ThresholdRule.parse("sigma:3") == ThresholdRule(Statistic.SIGMA, 3.0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "sigma", "sigma:", "sigma:0", "sigma:-1", "sigma:nan", "sigma:inf", "sigma:three", "Sigma:3", "median"),
        *("quantile", "quantile:0", "quantile:1", "quantile:99", "quantile:nan", "max:", "max:3", "f1:2"),
    ],
)
def test_other_rules_are_refused(text: str):
    with pytest.raises(InputError, match=r"expected sigma:3, quantile:0\.99, max or f1"):
        ThresholdRule.parse(text)


@pytest.mark.parametrize(
    ("rule", "least"),
    # one of the images may lie above the quantile: 1 / (1 - 0.99) = 100, 1 / (1 - 0.7) = 3.33 -> 4
    [
        ("sigma:3", 2),
        ("max", 2),
        ("quantile:0.1", 2),
        ("quantile:0.7", 4),
        ("quantile:0.9", 10),
        ("quantile:0.99", 100),
    ],
)
def test_too_few_images_are_refused(rule: str, least: int):
    assert ThresholdRule.parse(rule).minimum_images == least
    assert np.isfinite(fit(rule, np.arange(least)))
    with pytest.raises(TooFewImagesError, match=f"{rule}.* needs at least {least} normal .* got {least - 1};"):
        fit(rule, np.arange(least - 1))


def test_labels_leave_the_normal_images_to_the_other_rules():
    assert fit("max", [1, 2, 9], [0, 0, 1]) == above(2)
    with pytest.raises(TooFewImagesError, match="but got 1;"):
        fit("max", [1, 2, 9], [0, 1, 1])


def test_f1_by_hand():
    # score  1  2  3  4  6      keeping 3 and above finds both at one false alarm: F1 = 4/5
    # label  0  0  1  0  1      keeping 6 alone: F1 = 2/3
    assert fit("f1", [1, 2, 3, 4, 6], [0, 0, 1, 0, 1]) == 2.5
    assert f1_threshold([5, 5, 1], [1, 0, 0]) == 3  # equal scores are kept together
    assert f1_threshold([2, 2], [1, 0]) == 2  # nothing below: all are kept


def test_f1_needs_labels_of_both_kinds():
    with pytest.raises(UndefinedMetricError, match="needs labelled images"):
        fit("f1")
    with pytest.raises(UndefinedMetricError, match="all 2 are of one kind"):
        f1_threshold([1, 2], [1, 1])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-10, 10, width=32) | st.integers(0, 3).map(float), st.booleans()), min_size=2, max_size=15
    )
)
def test_f1_threshold_reaches_the_best_f1_of_a_loop(images: list[tuple[float, bool]]):
    scores, labels = np.array([s for s, _ in images]), np.array([a for _, a in images])
    if labels.all() or not labels.any():
        return

    def f1(threshold: float) -> float:
        return 2 * (labels & (scores >= threshold)).sum() / ((scores >= threshold).sum() + labels.sum())

    assert f1(f1_threshold(scores, labels)) == pytest.approx(max(f1(t) for t in scores.tolist()))


def test_f1_threshold_between_neighbours_in_floating_point():
    low = 1.0
    high = float(np.nextafter(low, 2))
    assert low < f1_threshold([low, high], [0, 1]) <= high


def test_scales_of_scores_and_maps():
    score, map_scale = fit_scales("max", np.array([3, 1, 2], np.float32), np.array([5, 9, 7], np.float32), 0.25)
    assert (score, map_scale) == (Scale(1, above(3)), Scale(0.25, above(9)))
    score, map_scale = fit_scales("f1", [3, 1, 2], [4, 6, 8], 0.25, labels=[0, 0, 1])
    assert score == Scale(1, 1.5)
    assert map_scale == Scale(0.25, 7)
    score, _ = fit_scales("f1", [1, 2, 3, 4], [1, 2, 3, 4], 0, labels=[1, 0, 0, 1])
    assert score == Scale(2, 3.5)  # low is that of normal images


@settings(max_examples=40)
@given(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from(["sigma:3", "quantile:0.5", "max"]),
    st.floats(-1e6, 1e6, width=32),
)
def test_low_lies_below_the_threshold_also_of_equal_values(value: float, rule: str, map_low: float):
    for scale in fit_scales(rule, [value] * 3, [value] * 3, map_low):
        assert scale.low < scale.threshold
        assert scale.threshold == pytest.approx(value)


def test_values_of_any_magnitude_keep_their_low():
    assert make_scale(1e-9, 3e-9) == Scale(1e-9, 3e-9)
    assert make_scale(-2.0, 0.0) == Scale(-2.0, 0.0)


@pytest.mark.parametrize("rule", ["sigma:3", "max", "f1"])
def test_values_that_are_not_finite_are_refused(rule: str):
    with pytest.raises(NonFiniteValuesError, match="1 of 3 values are not finite"):
        fit(rule, [1, np.nan, 3], [0, 0, 1])
