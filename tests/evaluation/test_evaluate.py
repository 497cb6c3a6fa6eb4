from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluation_fakes import BrightnessPredictor, BrightnessRaw, write_saturated_set, write_test_set
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from edge_ad.data.layouts import read_dataset, read_masks
from edge_ad.errors import InputError, MaskSizeError, NonFiniteValuesError, UndefinedMetricError
from edge_ad.evaluation.evaluate import evaluate, predict
from edge_ad.evaluation.image_metrics import Confusion
from edge_ad.evaluation.pixel_metrics import pixel_metrics
from edge_ad.evaluation.pixel_pool import label_regions, pool_pixels, regions_and_lost
from edge_ad.imaging import resize_mask, write_png


def test_images_are_measured_at_the_threshold_given_and_by_kind_of_defect(tmp_path: Path):
    # scores: good 10, 20; spot 90; scratch 60, 20
    data = write_test_set(tmp_path)
    found = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50)
    assert found.predictions.scores.tolist() == [10, 20, 90, 60, 20]
    assert found.image.auroc == pytest.approx((2 + 2 + 1.5) / 6)
    assert found.image.confusion == Confusion(2, 0, 1, 2)
    assert found.auroc_by_defect == pytest.approx({"scratch": (2 + 1.5) / 4, "spot": 1.0})
    assert (found.image_size, found.labels.tolist()) == ((11, 13), [False, False, True, True, True])


def test_pixels_are_compared_at_the_predictors_size_unless_told_otherwise(tmp_path: Path):
    data = write_test_set(tmp_path)
    found = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, pro_limit=0.1)
    # The masks on disk are two and three times larger; by nearest pixel they come back as they were made
    masks = [(data.images[i, :, :, 0] > 10) & bool(sample.label) for i, sample in enumerate(data.samples)]
    expected, _ = pixel_metrics(list(data.images[..., 0].astype(np.float32)), masks, 0.1)
    assert found.pixel is not None
    assert found.pixel.metrics == expected
    assert (found.pixel.size, found.pixel.lost_regions, expected.regions) == ((11, 13), 0, 3)

    larger = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, metrics_size=(22, 39)).pixel
    assert larger is not None
    assert larger.size == (22, 39)
    assert larger.metrics.anomalous == 6 * expected.anomalous
    assert larger.metrics.normal == 6 * expected.normal


def test_overlap_by_kind_of_defect_is_that_of_its_images_and_the_normal_ones(tmp_path: Path):
    data = write_test_set(tmp_path)
    pixel = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50).pixel
    assert pixel is not None
    assert set(pixel.aupro_by_defect) == {"scratch", "spot"}
    assert pixel.spro is None
    for kind, found in pixel.aupro_by_defect.items():
        chosen = [i for i, sample in enumerate(data.samples) if sample.defect in ("good", kind)]
        maps = [data.images[i, :, :, 0].astype(np.float32) for i in chosen]
        masks = [(data.images[i, :, :, 0] > 10) & bool(data.samples[i].label) for i in chosen]
        assert found == pixel_metrics(maps, masks)[0].aupro
    lost = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, metrics_size=(4, 13)).pixel
    assert lost is not None
    assert set(lost.aupro_by_defect) == {"spot"}


def test_regions_that_need_not_be_found_whole(tmp_path: Path):
    # 143 pixels an image. Normal ones: 2 x 143 of good images at 10 and 20, and what lies outside regions at 10.
    # logical: the spot at 90 is above them all: 1
    # structural: the scratch at 60 likewise; the other, at 20, ties with 143 of 286 + 130 + 129 = 545 normal pixels:
    # its overlap rises to 1 up to their rate; the single pixel, at 10, comes last. Mean overlap: 1/3, then up to 2/3.
    data, config = write_saturated_set(tmp_path)
    found = evaluate(
        BrightnessPredictor(), data.images, data.samples, threshold=50, defects_config=config, spro_limit=0.1
    ).pixel
    assert found is not None
    assert found.spro is not None
    rate = 143 / 545
    structural = 1 / 3 + 1 / 3 * (0.1 / rate) / 2
    assert found.spro.metrics.auspro_by_defect == pytest.approx({"logical": 1.0, "structural": structural})
    assert found.spro.metrics.auspro == pytest.approx((1 + structural) / 2)
    assert (found.spro.metrics.regions, found.spro.metrics.limit, found.spro.lost_regions) == (4, 0.1, 0)
    assert found.spro.curves["structural"].y[-2] == pytest.approx(1.0)
    smaller = evaluate(
        BrightnessPredictor(), data.images, data.samples, threshold=50, defects_config=config, metrics_size=(4, 13)
    ).pixel
    assert smaller is not None
    assert smaller.spro is not None
    assert (smaller.spro.lost_regions, smaller.spro.metrics.regions) == (2, 2)  # the scratches, one row of eleven


def test_masks_that_vanish_at_the_size_of_the_comparison_are_counted(tmp_path: Path):
    # At 4 rows nothing of the two scratches, one row of eleven, is left
    data = write_test_set(tmp_path)
    pixel = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, metrics_size=(4, 13)).pixel
    assert pixel is not None
    assert (pixel.lost_regions, pixel.metrics.regions) == (2, 1)


def test_what_lies_outside_of_the_region_of_interest_is_not_compared(tmp_path: Path):
    """Left of column 6 everywhere: a part of the spot and of both scratches, as if images had been cut there."""
    data, config = write_saturated_set(tmp_path)
    inside = np.zeros((11, 13), bool)
    inside[:, :6] = True
    options = {"threshold": 50, "map_threshold": 50, "defects_config": config}
    found = evaluate(BrightnessPredictor(), data.images, data.samples, inside=inside, **options).pixel
    masks = [(data.images[i, :, :6, 0] > 10) & bool(sample.label) for i, sample in enumerate(data.samples)]
    masks[4][1, 1] = True  # the region of one pixel
    expected, _ = pixel_metrics(list(data.images[:, :, :6, 0].astype(np.float32)), masks)
    assert found is not None
    assert found.metrics == expected
    assert (found.inside, found.outside_regions, found.lost_regions) == (6 / 13, 0, 0)
    assert found.mask is not None
    assert (found.mask.true_positives, found.mask.regions_hit, found.mask.regions) == (2 * 2 + 6, 2, 4)
    assert found.spro is not None
    assert (found.spro.metrics.regions, found.spro.lost_regions) == (4, 0)

    below = np.zeros((11, 13), bool)
    below[6:] = True  # the scratches alone
    pixel = evaluate(BrightnessPredictor(), data.images, data.samples, inside=below, **options).pixel
    assert pixel is not None
    assert (pixel.metrics.regions, pixel.outside_regions, pixel.lost_regions) == (2, 2, 0)
    assert set(pixel.aupro_by_defect) == {"structural"}
    assert pixel.spro is not None
    assert (pixel.spro.metrics.regions, pixel.spro.lost_regions) == (2, 0)


def test_every_region_that_vanishes_is_counted():
    """One blob and 20 specks of a pixel at 1024 px: at 256 px the nearest pixels show the blob alone."""
    mask = np.zeros((1024, 1024), bool)
    mask[100:200, 100:200] = True
    for index in range(20):
        mask[301 + 20 * index, 501] = True
    assert regions_and_lost(mask, (256, 256))[1] == 20
    assert regions_and_lost(mask, (1024, 1024))[1] == regions_and_lost(~mask, (256, 256))[1] == 0


def test_a_set_without_masks_has_no_pixel_metrics(tmp_path: Path):
    data = write_test_set(tmp_path, with_masks=False)
    found = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50)
    assert found.pixel is None
    assert found.image.anomalous == 3


def test_metrics_are_taken_on_raw_values_however_large(tmp_path: Path):
    class Loud(BrightnessPredictor):
        def raw(self, images: NDArray[np.uint8]) -> BrightnessRaw:
            quiet = super().raw(images)
            return replace(quiet, scores=1e4 * quiet.scores + 7, maps=1e4 * quiet.maps + 7)

    data = write_test_set(tmp_path)
    loud = evaluate(Loud(), data.images, data.samples, threshold=5e5)
    quiet = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50)
    assert loud.image.auroc == quiet.image.auroc
    assert loud.image.confusion == quiet.image.confusion
    assert loud.pixel is not None
    assert quiet.pixel is not None
    assert loud.pixel.metrics.aupro == quiet.pixel.metrics.aupro


def test_batches_do_not_change_what_is_predicted(tmp_path: Path):
    images = write_test_set(tmp_path).images
    steps: list[tuple[int, int, str]] = []
    predictor = BrightnessPredictor()
    single = predict(predictor, images)
    batched = predict(predictor, images, batch_size=2, progress=lambda *step: steps.append(step))
    assert predictor.batches == [1, 1, 1, 1, 1, 2, 2, 1]
    np.testing.assert_array_equal(single.scores, batched.scores)
    np.testing.assert_array_equal(single.maps, batched.maps)
    assert steps == [(2, 5, "evaluating"), (4, 5, "evaluating"), (5, 5, "evaluating")]
    assert batched.ms_per_image > 0


def test_time_is_counted_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ticks = iter([0.0, 0.008, 1.0, 1.012, 2.0, 2.005])  # seconds: 4, 6 and 5 ms per image in batches of 2, 2 and 1
    monkeypatch.setattr("edge_ad.evaluation.evaluate.time.perf_counter", lambda: next(ticks))
    predictions = predict(BrightnessPredictor(), write_test_set(tmp_path).images, batch_size=2)
    assert predictions.ms_per_image == pytest.approx(5)


def test_one_kind_of_image_is_refused_before_anything_runs(tmp_path: Path):
    data, predictor = write_test_set(tmp_path), BrightnessPredictor()
    with pytest.raises(UndefinedMetricError, match="all 2 test images are normal"):
        evaluate(predictor, data.images[:2], data.samples[:2], threshold=50)
    assert predictor.batches == []


def test_what_does_not_fit_is_refused(tmp_path: Path):
    data = write_test_set(tmp_path)
    with pytest.raises(InputError, match="got 4 images and 5 samples"):
        evaluate(BrightnessPredictor(), data.images[:4], data.samples, threshold=50)
    write_png(data.samples[2].masks[0], np.zeros((22, 38), np.uint8))
    with pytest.raises(MaskSizeError, match=r"is 22x38, but its image 2\.png is 22x39"):
        evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50)


def test_a_predictor_that_gives_nan_is_refused(tmp_path: Path):
    class Broken(BrightnessPredictor):
        def raw(self, images: NDArray[np.uint8]) -> BrightnessRaw:
            quiet = super().raw(images)
            return replace(quiet, scores=np.full_like(quiet.scores, np.nan))

    data = write_test_set(tmp_path)
    with pytest.raises(NonFiniteValuesError, match="score of image 0"):
        evaluate(Broken(), data.images, data.samples, threshold=50)


@pytest.mark.data
def test_ground_truth_of_a_real_set_against_scikit_learn():
    if "EDGE_AD_DATA" not in os.environ:
        pytest.skip("set EDGE_AD_DATA to a folder of real sets in MVTec layout")
    samples = read_dataset(Path(os.environ["EDGE_AD_DATA"]) / "bsdata" / "ballscrew").test[::4]
    size = (460, 1130)
    masks = [read_masks(sample, size) for sample in samples]
    rng = np.random.default_rng(0)
    maps = [(rng.integers(0, 50, size) + 20 * mask).astype(np.float32) for mask in masks]
    metrics, _ = pixel_metrics(maps, masks)
    expected = roc_auc_score(np.concatenate(masks).ravel(), np.concatenate(maps).ravel())
    assert metrics.auroc == pytest.approx(expected, abs=1e-9)
    assert metrics.regions >= sum(sample.label for sample in samples)


def test_a_region_that_shrinking_breaks_is_one_region():
    mask = np.zeros((8, 9), bool)
    mask[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = True  # a crack, corner to corner
    mask[7, 8] = True
    labels = label_regions(mask)
    assert (labels.max(), labels[4, 4], labels[7, 8]) == (2, 1, 2)
    smaller = label_regions(mask, (4, 3))
    assert smaller.dtype == np.int32
    np.testing.assert_array_equal(smaller > 0, resize_mask(mask, (4, 3)))
    assert set(np.unique(smaller)) <= {0, 1, 2}
    broken = np.zeros((5, 20), bool)
    broken[3, 1:4] = broken[2, 4:9] = broken[3, 9:15] = True
    pieces, _ = cv2.connectedComponents(resize_mask(broken, (2, 20)).astype(np.uint8))
    assert pieces - 1 == 2
    pool = pool_pixels([np.ones((2, 20), np.float32)], [label_regions(broken, (2, 20))])
    assert pool.connected.regions == 1
    assert pool.connected.shares.sum() == pytest.approx(1)
