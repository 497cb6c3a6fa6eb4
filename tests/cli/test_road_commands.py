"""train, evaluate and export as a user calls them: the road at 32 px, and every bad input as one line."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from safetensors.torch import load_file, save_file
from tiny_bundle import tiny_manifest
from tiny_depth import write_deep_png

from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, InputSpec, Manifest, Precision
from edge_ad.data.synthetic import write_synthetic
from edge_ad.errors import OutputWriteError
from edge_ad.evaluation import evaluate as evaluation
from edge_ad.evaluation import report
from edge_ad.imaging import read_image, read_mask, write_png
from edge_ad.methods import METHODS
from edge_ad.training.run_detector import RAW, run_manifest
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.trainer import run_images

TINY = ("--backbone", "resnet18", "--weights", "none", "-p", "dimensions=5", "--image-size", "64", "--tile-size", "32")


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "plates"
    return write_synthetic(folder, size=(64, 64), train=10, test_good=4, test_defective=4)


@pytest.fixture
def trained(run, plates: Path, tmp_path: Path) -> Path:
    outcome = run("train", "--data", plates, *TINY, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def test_a_region_of_interest_goes_all_the_way(run, plates: Path, tmp_path: Path):
    where = np.zeros((100, 100), np.uint8)
    where[:, :50] = 255
    write_png(tmp_path / "where.png", where)
    options = ("--data", plates, *TINY, "--roi", tmp_path / "where.png", "-o", tmp_path / "run")
    assert run("train", *options).code == 0
    assert run("train", *options).code == 0  # continued
    assert run("export", tmp_path / "run", "--precision", "fp32", "-o", tmp_path / "bundle").code == 0
    assert "region of interest  roi.png" in run("inspect", tmp_path / "bundle").out
    assert run("verify", tmp_path / "bundle").code == 0
    of_run, of_bundle = RunFolder.open(tmp_path / "run").normalisation(), read_bundle(tmp_path / "bundle").manifest
    masks = [read_mask(path) for path in (plates / "ground_truth").rglob("*.png")]
    labelled = [scipy.ndimage.label(mask, np.ones((3, 3))) for mask in masks]
    regions = [labels == number for labels, count in labelled for number in range(1, count + 1)]
    hidden = sum(not region[:, :32].any() for region in regions)
    assert 0 < hidden < len(regions)
    for model, norm in ((tmp_path / "run", of_run), (tmp_path / "bundle", of_bundle.normalisation)):
        found = run("evaluate", model, "--data", plates, "--json", "-").json
        assert found["image"]["threshold"] == norm.score.threshold
        assert found["mask"]["threshold"] == norm.map.threshold != norm.score.threshold
        assert found["region_of_interest"] == {"share": 0.5, "outside_regions": hidden}
        assert found["pixel"]["regions"] == len(regions) - hidden
        assert found["pixel"]["normal"] + found["pixel"]["anomalous"] == 8 * 64 * 32
    good = plates / "train" / "good"
    assert run("threshold", tmp_path / "bundle", "--good", good, "-o", tmp_path / "other").code == 0
    assert (tmp_path / "other" / "roi.png").read_bytes() == (tmp_path / "bundle" / "roi.png").read_bytes()
    write_png(tmp_path / "black.png", 0 * where)
    code, out, err = run("train", *options[:-3], tmp_path / "black.png", "-o", tmp_path / "never")
    assert (code, out) == (2, "")
    assert "black.png: all is black; paint black what is to be left out, and white where to look" in err
    write_png(tmp_path / "wide.png", where[:50])
    code, out, err = run("train", *options[:-3], tmp_path / "wide.png", "-o", tmp_path / "never")
    assert (code, out) == (2, "")
    assert "wide.png is 50x100, but the images are 64x64; draw the region on one of them, at any scale" in err


def test_the_road(run, plates: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert sorted(path.name for path in (trained / "tile_models").iterdir()) == [
        f"r0{row}_c0{col}.safetensors" for row in (0, 1) for col in (0, 1)
    ]
    before = {path: path.read_bytes() for path in trained.rglob("*.safetensors")}
    code, out, err = run("train", "--data", plates, *TINY, "-o", trained)  # nothing is left to do
    assert (code, err) == (0, "")
    assert out.startswith(f"{trained}: padim custom (64x64 image, 4 tiles of 32x32, 4 models), 8 images, raw threshold")
    assert before == {path: path.read_bytes() for path in trained.rglob("*.safetensors")}

    bundle = tmp_path / "tiny.edgead"
    code, out, _ = run("export", trained, "--precision", "fp32", "-o", bundle)
    assert (code, out.splitlines()[0].split(":")[1].split(",")[:2]) == (0, [" openvino fp32", " 5 graphs"])
    assert run("verify", bundle).code == 0

    ours = run("evaluate", trained, "--data", plates, "--json", "-").json
    exact = (bundle, "--data", plates, "--precision", "f32")
    theirs = run("evaluate", *exact, "--json", "-", "-o", tmp_path / "report").json
    assert ours["image"]["auroc"] == theirs["image"]["auroc"]
    assert ours["pixel"]["aupro"] == pytest.approx(theirs["pixel"]["aupro"], abs=1e-3)  # float32 against float32
    assert (ours["image"]["normal"], ours["image"]["anomalous"]) == (4, 4)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("evaluation.json", "evaluation.md", "scores.csv", "curves.json", "curves.png")
    }
    assert run("evaluate", trained, "--data", plates, "--precision", "bf16").err.startswith(
        f"error: {trained} is a run"
    )
    assert run("evaluate", trained, "--data", plates, "--device", "CUDA:9").code == 4
    table = run("evaluate", *exact, "--metrics-size", "32", "--pro-limit", "0.1").out
    assert "pixel (32x32)" in table
    assert "AUPRO@0.1" in table

    code, out, err = run("export", trained, "--precision", "fp32", "-o", bundle)
    assert (code, out) == (2, "")
    assert err == f"error: {bundle} exists; choose another -o, or pass --overwrite\n"
    monkeypatch.setenv("EDGE_AD_REQUIRE_SIGNATURE", "release.pub")  # of the line that it is made for
    code, _, err = run("export", trained, "--precision", "fp32", "--overwrite", "-o", bundle)
    assert (code, err) == (0, f"{bundle} is not signed: edge-ad sign\n")
    code, _, err = run("export", trained, "--precision", "fp32", "--parity-tolerance", "0", "-o", tmp_path / "no")
    assert (code, err.count("\n")) == (3, 1)
    assert not (tmp_path / "no").exists()


def test_deep_and_transparent_files_are_what_they_show(run, plates: Path, tmp_path: Path):
    """Twelve bits and alpha as declared: images, thresholds and figures are those of the opaque 8-bit twins."""
    corner = np.zeros((64, 64), bool)
    corner[:9, :9] = True
    plain, deep = (Path(shutil.copytree(plates, tmp_path / name)) for name in ("plain", "deep"))
    for path in (file.relative_to(plates) for part in ("train", "test") for file in (plates / part).rglob("*.png")):
        image = read_image(plates / path)
        write_deep_png(deep / path, image, corner)
        image[corner] = 255
        write_png(plain / path, image)
    declared = ("--bits", 12, "--alpha", "white")
    for data, options in ((plain, ()), (deep, declared)):
        command = ("train", "--data", data, *TINY, "--backbone", "test_resnet", *options)
        assert run(*command, "-o", tmp_path / f"run-{data.name}").code == 0
    runs = [RunFolder.open(tmp_path / f"run-{name}") for name in ("plain", "deep")]
    expected, images = map(run_images, runs)
    np.testing.assert_array_equal(images.fit, expected.fit)
    np.testing.assert_array_equal(images.held_out, expected.held_out)
    assert runs[0].normalisation() == runs[1].normalisation()
    figures = [
        run("evaluate", trained.path, "--data", data, *options, "--json", "-").json
        for trained, data, options in ((runs[0], plain, ()), (runs[1], deep, ()), (runs[0], deep, declared))
    ]
    for part in ("image", "pixel", "mask"):
        assert figures[0][part] == figures[1][part] == figures[2][part]


def settings_of(run_folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((run_folder / "run.json").read_text())
    return settings


def test_every_option_of_a_fitted_method_is_in_its_run(run, plates: Path, tmp_path: Path):
    options = (
        *("--stride", 16, "--sharing", "all", "--extractor-scope", "image", "--layers", "layer1,layer2"),
        *("--alpha", "white", "--bits", 10, "--held-out", 0.4, "--threshold", "quantile:0.75", "--normalise", "tile"),
        *("--score-merge", "mean", "--seed", 7),
    )
    outcome = run("train", "--data", plates, *TINY, *options, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    settings = settings_of(tmp_path / "run")
    setup, data = settings["setup"], settings["data"]
    assert (setup["stride"], setup["sharing"], setup["extractor_scope"]) == ([16, 16], "all", "image")
    assert settings["config"]["layers"] == ["layer1", "layer2"]
    assert data["pixel_format"] == {"bits": 10, "alpha": "white"}
    assert run_manifest(RunFolder.open(tmp_path / "run"), RAW).input == InputSpec(
        "rgb", "area", bits=10, alpha="white", proportions=(1.0, 1.0)
    )
    files = sorted((plates / "train" / "good").iterdir())
    drawn = np.random.default_rng(7).permutation(10)[:4]
    assert data["held_out"] == [hashlib.sha256(files[i].read_bytes()).hexdigest() for i in sorted(drawn)]
    assert len(data["training"]) == 6
    assert (settings["threshold_rule"], settings["normalisation_stage"]) == ("quantile:0.75", "tile")
    assert settings["score_merge"] == "mean"
    assert settings["seed"] == settings["config"]["seed"] == 7


def test_every_option_of_a_trained_method_is_in_its_run(run, plates: Path, tmp_path: Path):
    options = (
        *("--method", "stfpm", "-p", "backbone=test_resnet", "-p", "weights=none", "--global-model"),
        *("--image-size", "native", "--tile-size", 32, "--schedule", "original", "--steps", 2, "--batch-size", 3),
    )
    outcome = run("train", "--data", plates, *options, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    settings = settings_of(tmp_path / "run")
    assert (settings["setup"]["image_size"], settings["setup"]["global_model"]) == ([64, 64], True)
    config = settings["config"]
    assert (config["schedule"], config["steps"], config["batch_size"]) == ("original", 2, 3)
    assert run("evaluate", tmp_path / "run", "--data", plates, "-o", tmp_path / "report").code == 0
    assert read_image(tmp_path / "report" / "losses.png").size  # of heads that were trained


def test_every_option_of_export_reaches_its_work(run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from edge_ad.exporters import export

    given: list[Any] = []

    def export_run(folder: Any, images: Any, output: Path, options: Any, progress: Any) -> Manifest:
        given.extend((folder.path, output, options))
        return tiny_manifest()

    monkeypatch.setattr(export, "export_run", export_run)
    options = (
        *("--format", "onnx", "--precision", "fp16", "--accuracy-drop", 0.25, "--parity-tolerance", 0.5),
        *("--rank-correlation", 0.75, "--overwrite"),
    )
    outcome = run("export", trained, *options, "-o", tmp_path / "bundle")
    assert outcome.code == 0, outcome.err
    expected = export.ExportOptions(Format.ONNX, Precision.FP16, 0.25, 0.5, 0.75, overwrite=True)
    assert given == [trained, tmp_path / "bundle", expected]
    monkeypatch.setenv("EDGE_AD_REQUIRE_SIGNATURE", "release.pub")
    assert run("export", trained, "-o", "bundle").err == "bundle is not signed: edge-ad sign\n"
    assert run("-q", "export", trained, "-o", "bundle").err == ""


def test_every_option_of_distill_reaches_its_work(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from edge_ad.training import distillation

    given: list[Any] = []

    def distil(photographs: Path, output: Path, settings: Any, *, device: Any, progress: Any) -> float:
        given.extend((photographs, output, settings, str(device)))
        return 0.25

    monkeypatch.setattr(distillation, "distil", distil)
    options = (
        *("--size", "m", "--backbone", "resnet18", "--layers", "layer2, layer3", "--weights", "none", "--steps", 5),
        *("--batch-size", 3, "--learning-rate", 0.5, "--image-size", 96, "--bf16", "--device", "cpu", "--seed", 7),
    )
    code, out, err = run("distill", "photographs", "-o", tmp_path / "teacher.safetensors", *options)
    assert (code, err) == (0, "")
    assert out == f"{tmp_path}/teacher.safetensors: EfficientAD-M teacher of resnet18, 5 steps, loss 0.2500\n"
    settings = distillation.Distillation(
        size="m",
        backbone="resnet18",
        layers=("layer2", "layer3"),
        weights="none",
        steps=5,
        batch_size=3,
        learning_rate=0.5,
        image_px=96,
        seed=7,
        bf16=True,
    )
    assert given == [Path("photographs"), tmp_path / "teacher.safetensors", settings, "cpu"]


@pytest.mark.parametrize("command", [("train", "--data", "plates"), ("distill", "photographs")])
def test_a_negative_seed_is_refused(run, command: tuple[str, ...], tmp_path: Path):
    code, out, err = run(*command, "--seed", -1, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "Invalid value for '--seed': -1 is not in the range x>=0" in err


def test_another_setting_does_not_continue_a_run(run, plates: Path, trained: Path):
    code, out, err = run("train", "--data", plates, *TINY, "--seed", "7", "-o", trained)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "seed: 0 there, 7 here" in err


def test_training_images_that_are_gone_can_be_replaced(run, plates: Path, trained: Path, tmp_path: Path):
    settings = settings_of(trained)
    settings["data"]["root"] = str(tmp_path / "moved")
    (trained / "run.json").write_text(json.dumps(settings))
    code, _, err = run("export", trained, "-o", tmp_path / "b")
    assert (code, err.count("\n")) == (2, 1)
    assert "put it back, or name --calibration DIR" in err
    good = plates / "train" / "good"
    assert run("export", trained, "--precision", "fp32", "--calibration", good, "-o", tmp_path / "b").code == 0


def test_evaluate_tells_of_images_cropped_otherwise(
    run, plates: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert run("evaluate", trained, "--data", plates).code == 0
    assert caplog.messages == []
    shutil.copytree(plates, tmp_path / "halves")
    for image in (tmp_path / "halves" / "test").rglob("*.png"):
        write_png(image, read_image(image)[:32])
    for mask in (tmp_path / "halves" / "ground_truth").rglob("*.png"):
        write_png(mask, read_mask(mask)[:32].astype(np.uint8) * 255)
    run("evaluate", trained, "--data", tmp_path / "halves")
    assert ["frames of 32x64 are 2.00 times as wide" in message for message in caplog.messages] == [True]


def test_evaluate_checks_its_targets_before_the_work(
    run, plates: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("worked first"))
    (tmp_path / "file").write_text("mine")
    for target in (("-o", tmp_path / "file"), ("--json", tmp_path / "file" / "x.json"), ("--json", tmp_path)):
        code, out, err = run("evaluate", trained, "--data", plates, *target)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: cannot write ")


def test_evaluate_shows_its_figures_before_it_writes_them(
    run, plates: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise OutputWriteError("cannot write: No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    evaluated = ("evaluate", trained, "--data", plates, "-o", tmp_path / "report")
    code, out, err = run(*evaluated)
    assert (code, err) == (1, "error: cannot write: No space left on device\n")
    assert "| image | AUROC |" in out
    assert run(*evaluated, "--json", "-").json["image"]["auroc"] >= 0


def test_bad_heads_are_one_line(run, plates: Path, trained: Path):
    path = trained / "tile_models" / "r01_c00.safetensors"
    state = load_file(path)
    state["mean"][0, 0] = np.nan
    save_file(state, path)
    code, out, err = run("evaluate", trained, "--data", plates)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'mean' holds NaN or infinity" in err
    path.write_bytes(path.read_bytes()[:100])
    assert run("evaluate", trained, "--data", plates).code == 2
    path.unlink()
    code, _, err = run("evaluate", trained, "--data", plates)
    assert code == 2
    assert "is incomplete (r01_c00 missing); run the same edge-ad train again" in err


BAD = {
    "no such folder": (["--data", "nowhere"], "nowhere not found"),
    "empty folder": (["--data", "empty"], "empty holds no image"),
    "no normal images": (["--data", "defects"], "no normal training image in layout 'mvtec'"),
    "unknown category": (["--category", "bolt"], "no category 'bolt'"),
    "image smaller than a tile": (["--image-size", "16"], "image height 16 px is smaller than the tile's 32 px"),
    "stride beyond the tile": (["--stride", "33"], "stride 33 px exceeds the tile height 32 px"),
    "odd size": (["--tile-size", "12xx"], "expected a size such as 512 or 512x640"),
    "unknown backbone": (["--backbone", "resnet99"], "backbone 'resnet99' cannot be built"),
    "no such weights": (["--weights", "no.safetensors"], "weights file no.safetensors not found"),
    "not weights": (["--weights", "text.safetensors"], "text.safetensors is not a readable weights file"),
    "other architecture": (["--weights", "other.safetensors"], "weights of another architecture"),
    "unknown parameter": (["-p", "dimension=5"], "dimension"),
    "given twice": (["-p", "backbone=resnet34"], "-p backbone: given by --backbone too; leave one of them out"),
    "default given twice": (["-p", "seed=3", "--seed", "0"], "-p seed: given by --seed too; leave one of them out"),
    "steps of no training": (["--steps", "5"], "--steps: padim is not trained by steps; leave it out"),
    "batch of no training": (["--batch-size", "5"], "--batch-size: padim is not trained by steps; leave it out"),
    "no backbone": (["--method", "efficient_ad"], "--backbone: efficient_ad has no such parameter; leave it out"),
    "rule that needs defects": (["--threshold", "f1"], "fit it afterwards with edge-ad threshold"),
    "no such region": (["--roi", "no.png"], "Invalid value for '--roi': File 'no.png' does not exist."),
    "unknown rule": (["--threshold", "median"], "unknown threshold rule 'median'"),
    "held out": (["--held-out", "1.5"], "expected a fraction between 0 and 1"),
    "mixed sizes": (["--data", "mixed", "--image-size", "native"], "needs one common size"),
    "truncated image": (["--data", "truncated"], "the file is truncated"),
    "text for an image": (["--data", "text"], "not a JPEG, PNG, BMP or TIFF file"),
}


@pytest.fixture
def bad_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that `BAD` names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    grey = np.full((64, 64, 3), 90, np.uint8)
    Path("empty").mkdir()
    write_png(Path("defects/test/scratch/0.png"), grey)
    for name in ("mixed", "truncated", "text"):
        for index in range(6):
            write_png(Path(f"{name}/train/good/{index}.png"), grey)
    write_png(Path("mixed/train/good/2.png"), grey[:40])
    whole = Path("truncated/train/good/3.png")
    whole.write_bytes(whole.read_bytes()[:-30])
    Path("text/train/good/4.png").write_text("not a picture", encoding="utf-8")
    Path("text.safetensors").write_text("not tensors", encoding="utf-8")
    from torch import zeros

    save_file({"a": zeros(3)}, "other.safetensors")


@pytest.mark.usefixtures("bad_inputs")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line_and_leaves_nothing(run, plates: Path, tmp_path: Path, name: str):
    arguments, message = BAD[name]
    code, out, err = run("train", "--data", plates, *TINY, *arguments, "-o", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_distilled_and_trained_on(run, plates: Path, tmp_path: Path):
    photographs, teacher = plates / "train" / "good", tmp_path / "teacher.safetensors"
    assert photographs.is_dir()
    options = ("--backbone", "test_resnet", "--weights", "none", "--steps", 2, "--batch-size", 2, "--image-size", 64)
    code, out, err = run("distill", photographs, "-o", teacher, *options)
    assert (code, err) == (0, "")
    assert out.startswith(f"{teacher}: EfficientAD-S teacher of test_resnet, 2 steps, loss ")
    given = ("--method", "efficient_ad", "--weights", teacher, "-p", f"penalty_images={photographs}")
    outcome = run(
        "train", "--data", plates, *given, "--setup", "sm256", "--image-size", 64, "--steps", 2, "-o", tmp_path / "run"
    )
    assert outcome.code == 0, outcome.err
    assert settings_of(tmp_path / "run")["weights"] == "teacher.safetensors"
    code, _, err = run(
        "train", "--data", plates, "--method", "efficient_ad", "--setup", "sm256", "-o", tmp_path / "other"
    )
    assert (
        code,
        err.startswith("error: no distilled teacher can be downloaded: make one with edge-ad distill"),
    ) == (2, True)


def test_methods_and_their_parameters_are_listed(run):
    code, out, err = run("methods")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(METHODS)
    code, out, err = run("methods", "padim")
    assert (code, err) == (0, "")
    assert out.startswith("PaDiM: a Gaussian per position")
    assert "dimensions=100                  channels kept, d; all of them where there are fewer\n" in out
    assert run("methods", "nix").code == 2
