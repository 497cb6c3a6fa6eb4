"""Parity: numbers by hand, ranks by scipy, and gates that raise."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from fake_session import fake_detector
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import some_image, tiny_manifest
from tiny_run import scene

from edge_ad.bundle.manifest import Parity, Precision, Scale
from edge_ad.errors import AccuracyDropError, ParityError
from edge_ad.evaluation.evaluate import Predictions, predict
from edge_ad.exporters.parity import (
    check_accuracy,
    check_parity,
    compare,
    plant_defects,
    rank_correlation,
)
from edge_ad.training.run_detector import RAW

SCALES = (Scale(0.0, 5.0), Scale(0.0, 5.0))


def outputs(scores, maps=None):
    scores = np.array(scores, np.float32)
    return Predictions(scores, np.zeros((len(scores), 2, 3), np.float32) if maps is None else maps, 0.0)


def test_by_hand():
    maps = np.zeros((3, 2, 3), np.float32)
    maps[0, 0, 0], maps[2, 1, 2] = -2, 6  # range 8
    moved = maps.copy()
    moved[1, 1, 1] += 0.5
    moved[2, 1, 2] -= 2
    parity = compare(
        outputs([1, 4, 7], maps),
        outputs([1, 5.5, 6.75], moved),
        SCALES,
        execution_precision="bf16",
        device="GPU.1",
    )
    assert parity == Parity(
        execution_precision="bf16",
        device="GPU.1",
        images=3,
        map_max_abs=2.0,
        map_max_rel=0.25,
        score_max_abs=1.5,
        score_rank_correlation=pytest.approx(1.0),
        label_flips=1,  # 4 -> 5.5 over the threshold 5
    )


def test_labels_are_those_of_either_side():
    """The exporter fits thresholds anew: the same verdict at another scale is no flip."""
    scales = (Scale(0.0, 5.0), Scale(0.0, 50.0))
    made = compare(outputs([1, 5, 9]), outputs([10, 50, 49]), scales, execution_precision="f32", device="CPU")
    assert made.label_flips == 1


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=20).filter(
        lambda pairs: all(len({pair[side] for pair in pairs}) > 1 for side in (0, 1))
    )
)
def test_ranks_are_spearmans_with_ties(pairs):
    a, b = np.array(pairs, np.float32).T
    assert rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)


def test_ranks_of_many_values():
    rng = np.random.default_rng(0)
    a = rng.normal(size=100)
    b = a + rng.normal(size=100)
    assert rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_ranks_of_constants():
    constant, values = np.ones(5), np.arange(5.0)
    assert rank_correlation(constant, constant) == 1
    assert rank_correlation(values, constant) == 0  # a model that gives one score for everything has no ranks
    assert rank_correlation(constant, values) == 0
    assert rank_correlation(np.ones(1), np.zeros(1)) == 1


def test_rounding_does_not_swap_near_ties():
    """Two scores change places by a hundred-thousandth of the range, as an engine's sums may have it, or by more."""
    maps, scale = np.zeros((4, 2, 2), np.float32), Scale(0, 1)
    for shift, expected in ((1e-5, 1.0), (1e-3, 0.8)):
        reference = Predictions(np.array([0, 0.5, 0.5 + shift / 2, 1], np.float32), maps, 0.0)
        exported = Predictions(np.array([0, 0.5 + shift / 2, 0.5, 1], np.float32), maps, 0.0)
        parity = compare(reference, exported, (scale, scale), execution_precision="f32", device="CPU")
        assert parity.score_rank_correlation == pytest.approx(expected)


PERFECT = Parity("f32", "CPU", 16, 0.0, 0.0, 0.0, 1.0, 0)


# Written out: a gate that was opened by accident is to be noticed. The message of a refusal says the same.
GATES = {Precision.FP32: (0.001, 0.999), Precision.FP16: (0.01, 0.99), Precision.INT8: (0.5, 0.9)}


@pytest.mark.parametrize("precision", Precision)
def test_gates(precision):
    allowed, rank = GATES[precision]
    check_parity(replace(PERFECT, map_max_rel=allowed, score_rank_correlation=rank), precision)
    with pytest.raises(ParityError, match=rf"{precision} maps differ .* more than {allowed:g} \(run in f32\); train"):
        check_parity(replace(PERFECT, map_max_rel=allowed * 1.01), precision)
    with pytest.raises(ParityError, match=rf"{precision} scores rank 16 images differently .* at least {rank} wanted"):
        check_parity(replace(PERFECT, score_rank_correlation=rank - 0.001), precision)


def test_what_is_not_a_number_does_not_pass():
    with pytest.raises(ParityError):
        check_parity(replace(PERFECT, map_max_rel=float("nan")), Precision.INT8)
    with pytest.raises(ParityError):
        check_parity(replace(PERFECT, score_rank_correlation=float("nan")), Precision.INT8)


def test_a_tolerance_of_ones_own():
    parity = replace(PERFECT, map_max_rel=0.02)
    check_parity(parity, Precision.FP32, 0.02)
    with pytest.raises(ParityError, match=r"more than 0\.019"):
        check_parity(parity, Precision.INT8, 0.019)
    ranked = replace(PERFECT, score_rank_correlation=0.8)
    check_parity(ranked, Precision.FP32, None, 0.8)
    with pytest.raises(ParityError, match=r"at least 0\.81 wanted.*--rank-correlation"):
        check_parity(ranked, Precision.INT8, 1.0, 0.81)


def test_accuracy_by_sklearn():
    rng = np.random.default_rng(0)
    planted = np.arange(20) >= 10
    reference, exported = rng.normal(planted, 1), rng.normal(planted * 0.5, 1)
    before, after = check_accuracy(outputs(reference), outputs(exported), planted, 1.0)
    assert before == pytest.approx(sklearn.metrics.roc_auc_score(planted, reference.astype(np.float32)))
    assert after == pytest.approx(sklearn.metrics.roc_auc_score(planted, exported.astype(np.float32)))


def test_accuracy_gate():
    """2 normal, 2 planted images: one pair of four in the wrong order is 0.25."""
    planted = np.array([False, False, True, True])
    good, worse = outputs([1, 2, 3, 4]), outputs([1, 3, 2, 4])
    assert check_accuracy(good, worse, planted, 0.25) == (1.0, 0.75)
    with pytest.raises(AccuracyDropError, match=r"falls from 1\.0000 to 0\.7500, more than --accuracy-drop 0\.24"):
        check_accuracy(good, worse, planted, 0.24)
    assert check_accuracy(worse, good, planted, 0.0) == (0.75, 1.0)


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (300, 90)])
def test_a_planted_defect_is_one_small_patch(size):
    images = scene(12, size)
    kept = images.copy()
    planted = plant_defects(images)
    assert np.array_equal(images, kept)
    assert (planted.shape, planted.dtype) == (images.shape, np.uint8)
    places = set()
    for before, after in zip(images, planted, strict=True):
        rows, cols = np.nonzero((before != after).any(2))
        assert rows.size > 0
        height, width = np.ptp(rows) + 1, np.ptp(cols) + 1
        assert height < max(5, size[0] // 10)
        assert width < max(5, size[1] // 10)
        places.add((rows.min(), cols.min()))
    assert len(places) > 6
    assert np.array_equal(planted, plant_defects(images))
    assert not np.array_equal(planted, plant_defects(images, seed=1))


def test_defects_are_planted_where_the_detector_looks():
    images = np.full((40, 64, 64, 3), 100, np.uint8)
    inside = np.zeros((64, 64), bool)
    inside[2:5, 58:] = True  # a corner that random places would miss
    changed = (plant_defects(images, inside) != images).any(3)
    assert all((each & inside).any() for each in changed)


def test_a_planted_defect_is_darker_or_brighter():
    images = np.full((30, 64, 64, 3), 100, np.uint8)
    values = {int(value) for value in np.unique(plant_defects(images))}
    assert values == {50, 100, 160}


def test_predictions_are_the_detectors():
    manifest = tiny_manifest(normalisation=RAW)
    images = np.stack([some_image(manifest.setup, seed) for seed in range(3)])
    with fake_detector(manifest) as detector:
        got = predict(detector, images)
        one_by_one = [detector.raw(image[None]) for image in images]
    assert got.scores.tolist() == [float(raw.scores[0]) for raw in one_by_one]
    assert np.array_equal(got.maps, np.stack([raw.maps[0] for raw in one_by_one]))
