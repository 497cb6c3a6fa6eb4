"""A set with logical anomalies, through evaluate and experiment: figures by kind of defect, and AU-sPRO."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_ad.data.logical import COUNTED
from edge_ad.imaging import write_png

KINDS = ("logical_anomalies", "structural_anomalies")
CONFIG = """
setups = [{name = "whole", image_size = [32, 32], tile_size = [32, 32]}]
precisions = ["torch"]
[[datasets]]
path = "${PLATES}"
layout = "loco"
[[backbones]]
name = "resnet18"
weights = "none"
[parameters.padim]
dimensions = 5
"""


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "plates"
    return COUNTED.write(folder, size=(64, 64), train=6, validation=2, test_good=3, test_logical=4, test_structural=3)


@pytest.fixture(autouse=True)
def _environment(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLATES", str(plates))


def test_what_is_held_out_is_not_chosen_twice(run, plates: Path, tmp_path: Path):
    command = ("train", "--data", plates, "--layout", "loco", "--held-out", 0.3, "-o", tmp_path / "run")
    code, _, err = run(*command)
    assert (code, "has 2 normal validation images, which are held out; leave the option out" in err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_figures_by_kind_are_printed_written_and_tabled(run, plates: Path, tmp_path: Path):
    config = tmp_path / "logical.toml"
    config.write_text(CONFIG)
    out = tmp_path / "out"
    outcome = run("experiment", config, "-o", out, "--keep")
    assert outcome.code == 0, outcome.err
    assert ", AU-sPRO 0." in outcome.err
    (folder,) = (out / "runs").glob("*/run")

    evaluated = ("evaluate", folder, "--data", plates, "--layout", "loco")
    found = run(*evaluated, "--json", "-", "-o", tmp_path / "report").json
    assert set(found["auroc_by_defect"]) == set(found["aupro_by_defect"]) == set(KINDS)
    spro = found["spro"]
    assert spro["auspro"] == pytest.approx(np.mean([spro["auspro_by_defect"][kind] for kind in KINDS]))
    assert (spro["limit"], spro["regions"] + spro["lost_regions"]) == (0.05, 9)
    assert "AU-sPRO@0.05 |" in (tmp_path / "report" / "evaluation.md").read_text()
    assert {f"pixel_spro_{kind}" for kind in KINDS} <= set(
        json.loads((tmp_path / "report" / "curves.json").read_text())
    )
    table = run(*evaluated, "--spro-limit", "0.3").out
    assert "AU-sPRO@0.3 |" in table
    assert [line.split(" ")[1] for line in table.splitlines() if "anomalies" in line and "|" in line] == [
        *KINDS,
        *KINDS,
    ]
    full = run(*evaluated, "--metrics-size", "64", "--json", "-").json
    assert full["spro"]["lost_regions"] == 0

    text = (out / "results.md").read_text()
    assert "## Image AUROC / AUPRO / AU-sPRO by kind of defect, torch, resnet18, mean of tile scores" in text
    assert "| recall, logical_anomalies | recall, structural_anomalies |" in text
    (row,) = csv.DictReader((out / "results.csv").read_text().splitlines())
    for kind in KINDS:
        assert f"| plates, {kind} |" in text
        assert float(row[f"auspro_{kind}"]) == pytest.approx(spro["auspro_by_defect"][kind], abs=1e-6)
        assert float(row[f"image_auroc_{kind}"]) == pytest.approx(found["auroc_by_defect"][kind], abs=1e-6)

    content = (out / "results.jsonl").read_bytes()
    assert run("experiment", config, "-o", out).code == 0  # its lines are there
    assert (out / "results.jsonl").read_bytes() == content


def bad_configuration(folder: Path) -> str:
    path = folder / "defects_config.json"
    entries = json.loads(path.read_text())
    entries[0]["saturation_threshold"] = 0
    path.write_text(json.dumps(entries))
    return f"{path}[0]: expected a saturation_threshold of whole pixels, but got 0"


def no_configuration(folder: Path) -> str:
    (folder / "defects_config.json").unlink()
    return f"{folder / 'defects_config.json'} not found; it says how much of each mask must be found"


def unknown_value(folder: Path) -> str:
    mask = folder / "ground_truth" / "logical_anomalies" / "000" / "000.png"
    write_png(mask, np.full((64, 64), 77, np.uint8))
    return f"mask {mask} has pixel value 77, but {folder / 'defects_config.json'} knows 1, 2, 3, 4, 5, 6, 7, 8, 9"


@pytest.mark.parametrize("spoil", [bad_configuration, no_configuration, unknown_value])
def test_a_configuration_that_does_not_fit_is_one_line(run, bundle: Path, plates: Path, tmp_path: Path, spoil):
    data = tmp_path / "plates"
    shutil.copytree(plates, data)
    message = spoil(data)
    code, out, err = run("evaluate", bundle, "--data", data, "--layout", "loco")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")
