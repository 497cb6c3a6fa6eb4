from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import BrightnessPredictor, write_test_set
from sklearn.metrics import f1_score, precision_score, recall_score

from edge_ad.evaluation.evaluate import evaluate
from edge_ad.evaluation.mask_metrics import MaskMetrics
from edge_ad.evaluation.pixel_pool import label_regions
from edge_ad.evaluation.report import to_json, to_markdown


def test_masks_of_a_test_set_by_hand(tmp_path: Path):
    # normal: all 10, all 20; a spot of 6 pixels of 90; scratches of 13 of 60 and of 20
    data = write_test_set(tmp_path)

    def found(map_threshold: float) -> MaskMetrics | None:
        pixel = evaluate(
            BrightnessPredictor(), data.images, data.samples, threshold=50, map_threshold=map_threshold
        ).pixel
        assert pixel is not None
        return pixel.mask

    # true and false positives, false negatives; regions and those hit; normal images and those marked
    assert found(30) == MaskMetrics(19, 0, 13, 3, 2, 2, 0)
    assert found(20) == MaskMetrics(32, 11 * 13, 0, 3, 3, 2, 1)  # at the threshold is marked
    assert found(91) == MaskMetrics(0, 0, 32, 3, 0, 2, 0)


def test_rates_against_scikit_learn():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 17, 23)).astype(np.float32)
    masks = rng.random((3, 17, 23)) > 0.8
    parts = [
        MaskMetrics.of(values, label_regions(mask), 0.6, is_normal=False)
        for values, mask in zip(maps, masks, strict=True)
    ]
    found = parts[0] + parts[1] + parts[2]
    truth, marked = masks.ravel(), (maps >= np.float32(0.6)).ravel()
    assert found.precision == pytest.approx(precision_score(truth, marked))
    assert found.recall == pytest.approx(recall_score(truth, marked))
    assert found.f1 == pytest.approx(f1_score(truth, marked))
    nothing = MaskMetrics.of(maps[0], np.zeros((17, 23), np.int32), 2.0, is_normal=True)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)
    assert set(asdict(nothing).values()) == {0, 1}


def test_a_report_tells_of_masks_where_they_were_measured(tmp_path: Path):
    data = write_test_set(tmp_path)
    found = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, map_threshold=30)
    assert to_json(found)["mask"] == {
        "threshold": 30,
        "precision": 1.0,
        "recall": 19 / 32,
        "f1": 38 / 51,
        **asdict(MaskMetrics(19, 0, 13, 3, 2, 2, 0)),
    }
    assert (
        "Masks, at the map's threshold of 30: 2 of 3 regions are touched, and 0 of 2 normal images; pixels' F1 0.7451, "
        "precision 1.0000, recall 0.5938." in to_markdown(found, "bolt")
    )
    without = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50)
    assert to_json(without)["mask"] is None
    assert "Masks" not in to_markdown(without, "bolt")
