from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from edge_ad.errors import InputError, MaskSizeError, NonFiniteValuesError, UndefinedMetricError
from edge_ad.evaluation.pixel_metrics import pixel_metrics

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
SHAPES = ((7, 11), (5, 13), (3, 2))


def random_set(seed: int, levels: int, density: float = 0.2) -> tuple[Maps, Masks]:
    """Three images of different sizes, the last all normal; ``levels`` distinct values, so that few mean many ties."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < density for shape in SHAPES[:-1]] + [np.zeros(SHAPES[-1], bool)]
    masks[0][0, 0], masks[0][6, 10] = True, False
    maps = [(rng.integers(0, levels, mask.shape) + levels // 3 * mask).astype(np.float32) for mask in masks]
    return maps, masks


def brute_force_aupro(maps: Maps, masks: Masks, limit: float) -> float:
    """Every distinct value as a threshold, every region looked at by itself."""
    normal = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [anomaly_map[labels == region] for region in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlap = np.mean([(region >= threshold).mean() for region in regions])
        points.append((float((normal >= threshold).mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def pooled(maps: Maps, masks: Masks) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 1000]), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_aupro_equals_a_loop_over_all_thresholds(seed: int, levels: int, limit: float):
    maps, masks = random_set(seed, levels)
    metrics, _ = pixel_metrics(maps, masks, limit)
    assert metrics.aupro == pytest.approx(brute_force_aupro(maps, masks, limit), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 1000]), st.sampled_from([0.05, 0.9]))
def test_auroc_average_precision_and_f1_equal_scikit_learn(seed: int, levels: int, density: float):
    maps, masks = random_set(seed, levels, density)
    metrics, _ = pixel_metrics(maps, masks)
    scores, labels = pooled(maps, masks)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.aupr == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    assert metrics.f1_max == pytest.approx(f1.max(), abs=1e-12)
    predicted = scores >= metrics.f1_max_threshold
    assert metrics.f1_max == pytest.approx(2 * (predicted & labels).sum() / (predicted.sum() + labels.sum()))
    assert (metrics.normal, metrics.anomalous) == ((~labels).sum(), labels.sum())


def test_a_case_by_hand():
    # mask   A . B B . . . . . . . . .      regions A of 1 and B of 2 pixels, Q = 10 normal pixels
    # value 12 11 8 7 10 9 6 5 4 3 2 1 0
    #
    # overlap 1.0            B (both)       A enters at FPR 0, then three normal pixels, then B at FPR exactly 0.3
    #         0.5 A__________|
    #             0   FPR   0.3
    values = np.array([[12, 11, 8, 7, 10, 9, 6, 5, 4, 3, 2, 1, 0]], np.float32)
    mask = np.zeros((1, 13), bool)
    mask[0, [0, 2, 3]] = True
    metrics, curves = pixel_metrics([values], [mask])
    assert metrics.aupro == pytest.approx(0.5)
    assert pixel_metrics([values], [mask], 0.6)[0].aupro == pytest.approx((0.3 * 0.5 + 0.3 * 1.0) / 0.6)
    assert metrics.auroc == pytest.approx((10 + 7 + 7) / 30)
    assert metrics.aupr == pytest.approx((1 / 1 + 2 / 5 + 3 / 6) / 3)
    assert metrics.f1_max == pytest.approx(2 * 3 / (6 + 3))
    assert metrics.f1_max_threshold == 7
    assert (metrics.regions, metrics.pro_limit, metrics.connectivity) == (2, 0.3, 8)
    assert curves.precision_recall.y.tolist() == pytest.approx([1, 2 / 5, 3 / 6])


def test_pixels_that_touch_at_a_corner_are_one_region():
    # X .
    # . X      one region of two pixels: each adds half
    mask = np.eye(2, dtype=bool)
    metrics, _ = pixel_metrics([np.array([[3, 1], [2, 0]], np.float32)], [mask], 1.0)
    assert metrics.regions == 1
    # (0, 1/2) after 3; 2 and 1 are the normal pixels; 0 completes the region at FPR 1
    assert metrics.aupro == pytest.approx(0.5)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((1, 103), bool)
    mask[0, 0] = mask[0, 2:101] = True
    values = np.zeros((1, 103), np.float32)
    values[0, 0] = 1  # the single pixel is found, the ninety-nine are not
    metrics, curves = pixel_metrics([values], [mask])
    assert curves.pro.y[1:3].tolist() == pytest.approx([0, 0.5])
    assert metrics.aupro == pytest.approx(0.5 + 0.5 * 0.3 / 2)  # from (0, 0.5) straight to (1, 1)


def test_a_constant_map_gives_half_the_limit():
    maps, masks = random_set(1, 1)
    flat = [np.full(m.shape, 4, np.float32) for m in maps]
    assert pixel_metrics(flat, masks)[0].aupro == pytest.approx(0.15)
    assert pixel_metrics(flat, masks)[0].auroc == pytest.approx(0.5)


def test_a_perfect_map_gives_one():
    _, masks = random_set(2, 5)
    metrics, _ = pixel_metrics([mask.astype(np.float32) for mask in masks], masks)
    assert (metrics.auroc, metrics.aupr, metrics.f1_max, metrics.aupro) == pytest.approx((1, 1, 1, 1))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.permutations(range(3)))
def test_scale_and_order_of_images_do_not_matter(seed: int, order: list[int]):
    maps, masks = random_set(seed, 50)
    expected, _ = pixel_metrics(maps, masks)
    scaled, _ = pixel_metrics([10 * maps[i] + 3 for i in order], [masks[i] for i in order])
    assert scaled.f1_max_threshold == 10 * expected.f1_max_threshold + 3
    for name in ("auroc", "aupr", "f1_max", "aupro", "regions"):
        assert getattr(scaled, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_inputs_stay_as_they_are():
    maps, masks = random_set(3, 5)
    before = [m.copy() for m in maps], [m.copy() for m in masks]
    pixel_metrics(maps, masks)
    for now, then in zip((*maps, *masks), (*before[0], *before[1]), strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(bad: float):
    maps, masks = random_set(4, 5)
    maps[2][1, 1] = bad
    with pytest.raises(NonFiniteValuesError, match="anomaly map 2 holds NaN or infinity"):
        pixel_metrics(maps, masks)


def test_sets_without_both_kinds_of_pixels_are_refused():
    maps, masks = random_set(5, 5)
    with pytest.raises(UndefinedMetricError, match="all 148 are normal: no mask marks a region"):
        pixel_metrics(maps, [np.zeros_like(mask) for mask in masks])
    with pytest.raises(UndefinedMetricError, match="all 148 are anomalous"):
        pixel_metrics(maps, [np.ones_like(mask) for mask in masks])
    with pytest.raises(UndefinedMetricError, match="all 0 are normal"):
        pixel_metrics([], [])


def test_other_sizes_and_limits_are_refused():
    maps, masks = random_set(6, 5)
    with pytest.raises(MaskSizeError, match="anomaly map 1 is 13x5, but its mask 5x13"):
        pixel_metrics([maps[0], maps[1].T, maps[2]], masks)
    for limit in (0.0, 1.5, np.nan):
        with pytest.raises(InputError, match="PRO limit"):
            pixel_metrics(maps, masks, limit)
