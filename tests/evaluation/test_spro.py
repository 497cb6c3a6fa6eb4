from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from edge_ad.data.saturation import Region
from edge_ad.errors import InputError, UndefinedMetricError
from edge_ad.evaluation.pixel_metrics import pixel_metrics, pooled_metrics
from edge_ad.evaluation.pixel_pool import PixelPool, label_regions, pool_pixels
from edge_ad.evaluation.spro import SPRO_LIMIT, SproMetrics, spro_metrics

Images = list[tuple[NDArray[np.float32], list[Region]]]
SHAPES = ((7, 11), (5, 13), (3, 2))


def random_images(seed: int, levels: int, saturated: bool = True) -> Images:
    """Two images with up to three regions each, which may overlap, and a normal one; few ``levels`` mean many ties."""
    rng = np.random.default_rng(seed)
    images: Images = []
    for shape, count in zip(SHAPES, (rng.integers(1, 4), rng.integers(1, 4), 0), strict=True):
        regions = []
        for _ in range(count):
            mask = rng.random(shape) < 0.15
            mask[rng.integers(shape[0]), rng.integers(1, shape[1])] = True
            mask[0, 0] = False  # a normal pixel is left
            area = int(mask.sum())
            regions.append(Region(mask, float(rng.uniform(0.3, area)) if saturated else area))
        union = union_of(shape, regions)
        images.append(((rng.integers(0, levels, shape) + levels // 3 * union).astype(np.float32), regions))
    return images


def union_of(shape: tuple[int, ...], regions: list[Region]) -> NDArray[np.bool_]:
    union = np.zeros(shape, bool)
    for region in regions:
        union |= region.mask
    return union


def pooled(images: Images) -> PixelPool:
    maps, regions = [each for each, _ in images], [each for _, each in images]
    return pool_pixels(maps, [label_regions(union_of(each.shape, inside)) for each, inside in images], regions)


def brute_force(images: Images, limit: float) -> float:
    """Every distinct value as a threshold, every region by itself; the area by trapezoids."""
    normal = np.concatenate([each[~union_of(each.shape, regions)] for each, regions in images])
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for each, _ in images for value in each.ravel()}, reverse=True):
        overlaps = [
            min(np.count_nonzero(each[region.mask] >= threshold) / region.saturation_px, 1.0)
            for each, regions in images
            for region in regions
        ]
        points.append((float((normal >= threshold).mean()), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def auspro(images: Images, limit: float) -> float:
    found, _ = spro_metrics(pooled(images[2:]), {"any": pooled(images[:2])}, limit)
    assert found.auspro == found.auspro_by_defect["any"]
    return found.auspro


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 1000]), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_it_equals_a_loop_over_all_thresholds_and_regions(seed: int, levels: int, limit: float):
    images = random_images(seed, levels)
    assert auspro(images, limit) == pytest.approx(brute_force(images, limit), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([2, 1000]), st.sampled_from([0.05, 0.3]))
def test_with_saturation_at_the_whole_region_it_is_pro(seed: int, levels: int, limit: float):
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < 0.2 for shape in SHAPES[:2]] + [np.zeros(SHAPES[2], bool)]
    masks[0][0, 0], masks[0][6, 10] = True, False
    maps = [(rng.integers(0, levels, mask.shape) + levels // 3 * mask).astype(np.float32) for mask in masks]
    images: Images = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        parts = [labels == region for region in range(1, count + 1)]
        images.append((anomaly_map, [Region(part, int(part.sum())) for part in parts]))
    metrics, _ = pixel_metrics(maps, masks, limit)
    assert auspro(images, limit) == pytest.approx(metrics.aupro, abs=1e-12)


def test_a_case_by_hand():
    # region A A A A . B . . . . . . . . .      A of 4 pixels, 2 are enough; B of 1; 10 normal pixels
    # value  9 7 1 0 8 5 6 4 3 2 ...
    #
    # sPRO 1.00                  B at 5        FPR 0: half of A; 8 is normal (FPR 0.1); 7 completes A;
    #      0.50          A at 7 _|             6 is normal (FPR 0.2); 5 completes B
    #      0.25  A at 9 _|                     the other two of A, at 1 and 0, add nothing
    #           0   0.1    0.2
    values = np.array([[9, 7, 1, 0, 8, 5, 6, 4, 3, 2, 1.8, 1.6, 1.4, 1.2, 0.5]], np.float32)
    a, b = np.zeros((2, 1, 15), bool)
    a[0, :4], b[0, 5] = True, True
    pool = pool_pixels([values], [label_regions(a | b)], [[Region(a, 2), Region(b, 1)]])
    nothing = pool_pixels([], [])
    found, curves = spro_metrics(nothing, {"logical": pool}, 0.3)
    assert found.auspro == pytest.approx((0.1 * 0.25 + 0.1 * 0.5 + 0.1 * 1.0) / 0.3)
    assert (found.regions, found.limit) == (2, 0.3)
    assert spro_metrics(nothing, {"logical": pool})[0].auspro == pytest.approx(0.25)
    assert SPRO_LIMIT == 0.05
    assert np.interp(0.15, curves["logical"].x, curves["logical"].y) == pytest.approx(0.5)
    # PRO of the same pixels asks for all of A, which touches nothing else
    assert pooled_metrics([pool], 0.3)[0].aupro == pytest.approx((0.1 * 0.125 + 0.1 * 0.25 + 0.1 * 0.75) / 0.3)


def test_a_pixel_of_two_regions_counts_in_both_and_never_as_normal():
    first, second = np.zeros((2, 1, 4), bool)
    first[0, :2] = second[0, 1:3] = True
    values = np.array([[0, 9, 0, 5]], np.float32)
    regions = [Region(first, 1), Region(second, 2)]
    pool = pool_pixels([values], [label_regions(first | second)], [regions])
    assert pool.normal.tolist() == [5]
    _, curves = spro_metrics(pool_pixels([], []), {"x": pool}, 1.0)
    assert curves["x"].y[2] == pytest.approx((1 + 0.5) / 2)


def test_kinds_share_normal_images_and_nothing_else_and_weigh_the_same():
    images = [random_images(seed, 50) for seed in (1, 2, 3)]
    normal = [random_images(9, 50)[2]]
    logical, structural = [each[0] for each in images], [images[0][1]]
    found, curves = spro_metrics(pooled(normal), {"logical": pooled(logical), "structural": pooled(structural)}, 0.3)
    expected = {
        "logical": brute_force([*normal, *logical], 0.3),
        "structural": brute_force([*normal, *structural], 0.3),
    }
    assert found.auspro_by_defect == pytest.approx(expected)
    assert found.auspro == pytest.approx(np.mean(list(expected.values())))
    assert found.regions == sum(len(regions) for _, regions in (*logical, *structural))
    assert set(curves) == set(expected)


def test_bounds():
    images = random_images(4, 5)
    flat: Images = [(np.full_like(each, 3), regions) for each, regions in images]
    assert auspro(flat, 0.3) == pytest.approx(0.15)  # half the limit, as of any constant map
    perfect: Images = [(union_of(each.shape, regions).astype(np.float32), regions) for each, regions in images]
    assert auspro(perfect, 0.05) == 1.0


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(1.0, 4.0))
def test_more_tolerance_is_never_worse(seed: int, factor: float):
    strict = random_images(seed, 50)
    tolerant: Images = [
        (each, [Region(region.mask, region.saturation_px / factor) for region in regions]) for each, regions in strict
    ]
    assert auspro(tolerant, 0.3) >= auspro(strict, 0.3) - 1e-12


def test_a_kind_without_a_region_is_left_out_and_none_at_all_refused():
    images = random_images(5, 5)
    none = pooled(images[2:])
    found, _ = spro_metrics(none, {"logical": pooled(images[:2]), "structural": none})
    assert set(found.auspro_by_defect) == {"logical"}
    with pytest.raises(UndefinedMetricError, match="no mask marks one"):
        spro_metrics(none, {"logical": none})
    everywhere = np.ones((2, 3), bool)
    full = pool_pixels([np.zeros((2, 3), np.float32)], [label_regions(everywhere)], [[Region(everywhere, 6)]])
    with pytest.raises(UndefinedMetricError, match="all are anomalous"):
        spro_metrics(pool_pixels([], []), {"x": full})


def test_a_limit_out_of_range_is_refused():
    pool = pooled(random_images(6, 5))
    for limit in (0.0, 1.5, np.nan):
        with pytest.raises(InputError, match=r"sPRO limit in \(0, 1\]"):
            spro_metrics(pool, {"x": pool}, limit)


def test_pools_add_up_to_one():
    images = random_images(7, 20)
    maps, masks = [each for each, _ in images], [union_of(each.shape, regions) for each, regions in images]
    whole, curves = pixel_metrics(maps, masks)
    parts, part_curves = pooled_metrics(
        [pool_pixels([m], [label_regions(mask)]) for m, mask in zip(maps, masks, strict=True)]
    )
    assert parts == whole
    np.testing.assert_array_equal(curves.pro.x, part_curves.pro.x)
    assert isinstance(spro_metrics(pooled(images[2:]), {"x": pooled(images[:2])})[0], SproMetrics)
