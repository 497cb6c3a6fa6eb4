from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from evaluation_fakes import BrightnessPredictor, write_saturated_set, write_test_set

from edge_ad.errors import OutputWriteError
from edge_ad.evaluation.evaluate import Evaluation, evaluate
from edge_ad.evaluation.report import curves_json, curves_png, to_csv, to_json, to_markdown, write_report


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    data = write_test_set(tmp_path)
    return evaluate(BrightnessPredictor(), data.images, data.samples, threshold=60)


@pytest.fixture
def without_masks(tmp_path: Path) -> Evaluation:
    data = write_test_set(tmp_path, with_masks=False)
    return evaluate(BrightnessPredictor(), data.images, data.samples, threshold=60)


@pytest.fixture
def saturated(tmp_path: Path) -> Evaluation:
    data, config = write_saturated_set(tmp_path)
    return evaluate(BrightnessPredictor(), data.images, data.samples, threshold=60, defects_config=config)


def test_json_holds_every_figure_and_what_it_means(evaluation: Evaluation):
    plain = json.loads(json.dumps(to_json(evaluation, model="bolt"), allow_nan=False))
    assert list(plain)[:2] == ["schema_version", "model"]
    assert plain["model"] == "bolt"
    assert plain["image"]["auroc"] == evaluation.image.auroc
    assert plain["image"]["confusion"]["false_negatives"] == 1
    assert plain["auroc_by_defect"] == {"scratch": 0.875, "spot": 1.0}
    assert (plain["pixel"]["pro_limit"], plain["pixel"]["connectivity"], plain["pixel"]["regions"]) == (0.3, 8, 3)
    assert plain["pixel"]["lost_regions"] == 0
    assert (plain["metrics_size"], plain["image_size"]) == ([11, 13], [11, 13])
    assert plain["ms_per_image"] > 0


def test_json_without_masks_says_so(without_masks: Evaluation):
    plain = to_json(without_masks)
    assert plain["pixel"] is None
    assert plain["metrics_size"] is None
    assert set(curves_json(without_masks)) == {"image_roc", "image_precision_recall"}


def test_markdown_names_counts_sizes_and_the_limit(evaluation: Evaluation, without_masks: Evaluation):
    text = to_markdown(evaluation, "bolt")
    assert text.startswith("## bolt\n\n2 normal and 3 anomalous images, run at 11x13, ")
    assert "| all | 0.9167 |" in text
    assert "| scratch | 0.8750 |" in text
    assert "2 of 3 anomalous images found, 0 of 2 normal ones rejected" in text
    assert "| pixel (11x13) | AUROC | AUPR | F1-max | AUPRO@0.3 |" in text
    assert "| 3 regions, 8-connected |" in text
    assert "vanish" not in text
    assert "No masks: no pixel metrics." in to_markdown(without_masks, "bolt")
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_figures_by_kind_and_their_mean_are_in_all_of_them(saturated: Evaluation, evaluation: Evaluation):
    pixel = saturated.pixel
    assert pixel is not None
    assert pixel.spro is not None
    auspro, aupro = pixel.spro.metrics.auspro_by_defect, pixel.aupro_by_defect
    plain = json.loads(json.dumps(to_json(saturated), allow_nan=False))
    assert plain["auroc_by_defect"] == {"logical": 1.0, "structural": 0.875}
    assert plain["aupro_by_defect"] == aupro
    assert plain["spro"] == {
        **{"auspro": pixel.spro.metrics.auspro, "auspro_by_defect": auspro, "limit": 0.05},
        **{"regions": 4, "lost_regions": 0},
    }
    text = to_markdown(saturated, "bolt")
    assert "| logical | 1.0000 | | | | | | |\n| structural | 0.8750 | | | | | | |\n| mean of kinds | 0.9375 |" in text
    assert "| pixel (11x13) | AUROC | AUPR | F1-max | AUPRO@0.3 | AU-sPRO@0.05 |" in text
    for kind in ("logical", "structural"):
        assert f"| {kind} | | | | {aupro[kind]:.4f} | {auspro[kind]:.4f} |" in text
    assert f"| mean of kinds | | | | {np.mean([*aupro.values()]):.4f} | {pixel.spro.metrics.auspro:.4f} |" in text
    assert "AU-sPRO: each of 4 masks is a region, complete at its saturation area." in text
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert {"pixel_spro_logical", "pixel_spro_structural"} <= set(curves_json(saturated))
    assert curves_png(saturated, "bolt").startswith(b"\x89PNG")

    plain, text = to_json(evaluation), to_markdown(evaluation, "bolt")
    assert plain["spro"] is None
    assert "sPRO" not in text
    assert "mean of kinds" not in text
    assert f"| scratch | | | | {plain['aupro_by_defect']['scratch']:.4f} |" in text


def test_markdown_warns_of_lost_masks(tmp_path: Path):
    data = write_test_set(tmp_path)
    found = evaluate(BrightnessPredictor(), data.images, data.samples, threshold=50, metrics_size=(4, 13))
    assert "2 regions vanish at 4x13 and are not counted" in to_markdown(found, "bolt")


def test_csv_tells_which_images_were_missed(evaluation: Evaluation):
    rows = list(csv.DictReader(to_csv(evaluation).splitlines()))
    assert [row["predicted"] for row in rows] == ["0", "0", "1", "1", "0"]
    assert [row["label"] for row in rows] == ["0", "0", "1", "1", "1"]
    assert [float(row["score"]) for row in rows] == [10, 20, 90, 60, 20]
    assert rows[4]["defect"] == "scratch"
    assert rows[4]["path"].endswith("scratch/4.png")


def test_curves_are_short_and_end_where_they_should(evaluation: Evaluation):
    curves = curves_json(evaluation)
    assert set(curves) == {"image_roc", "image_precision_recall", "pixel_roc", "pixel_precision_recall", "pixel_pro"}
    for name, curve in curves.items():
        assert 2 <= len(curve["x"]) == len(curve["y"]) <= 512
        assert curve["x"][-1] == 1
        if "precision" not in name:
            assert (curve["x"][0], curve["y"][0], curve["y"][-1]) == (0, 0, 1)


def test_the_figure_has_a_second_row_where_there_are_masks(evaluation: Evaluation, without_masks: Evaluation):
    def decoded(png: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)

    both, images_only = decoded(curves_png(evaluation, "bolt")), decoded(curves_png(without_masks, "bolt"))
    assert both.shape[1] == images_only.shape[1]
    assert both.shape[0] > 1.5 * images_only.shape[0]
    assert both.std() > 5  # not a blank sheet


def test_a_report_is_a_folder_of_whole_files(evaluation: Evaluation, tmp_path: Path):
    folder = tmp_path / "new" / "report"
    write_report(folder, evaluation, "bolt", model="bolt.edgead")
    names = {path.name for path in folder.iterdir()}
    assert names == {"evaluation.json", "evaluation.md", "scores.csv", "curves.json", "curves.png"}
    assert json.loads((folder / "evaluation.json").read_text("utf-8"))["model"] == "bolt.edgead"
    assert json.loads((folder / "curves.json").read_text("utf-8")) == curves_json(evaluation)


def test_a_report_that_cannot_be_written_is_an_error(evaluation: Evaluation, tmp_path: Path):
    (tmp_path / "evaluation.md").mkdir()
    with pytest.raises(OutputWriteError, match=r"cannot write .*evaluation\.md"):
        write_report(tmp_path, evaluation, "bolt")
