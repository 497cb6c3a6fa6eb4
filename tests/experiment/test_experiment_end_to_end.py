"""A whole tiny experiment with a real method: random ResNet18, plates of 64 px, four tiles."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tiny_run import BACKBONE

from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, Precision, ScoreMerge
from edge_ad.data.cache import open_cache
from edge_ad.data.layouts import read_dataset, read_masks
from edge_ad.data.logical import COUNTED
from edge_ad.data.saturation import read_defects_config
from edge_ad.data.synthetic import write_synthetic
from edge_ad.errors import EdgeAdError
from edge_ad.evaluation.evaluate import evaluate
from edge_ad.evaluation.image_metrics import image_auroc
from edge_ad.experiment import measure
from edge_ad.experiment.benchmark import run_benchmark_process
from edge_ad.experiment.config import BenchmarkEntry, Config, Variant, parse_config
from edge_ad.experiment.grid import cells
from edge_ad.experiment.measure import defect_area
from edge_ad.experiment.record import Outcome, Record
from edge_ad.experiment.runner import make_plan, run_jobs
from edge_ad.exporters.export import ExportOptions
from edge_ad.imaging import read_mask
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder

SIZE = (64, 64)


def make_config(data: Path, **changes: Any) -> Config:
    table = {
        "datasets": [{"path": str(data)}],
        "setups": [{"name": "four", "image_size": list(SIZE), "tile_size": [32, 32]}],
        "precisions": ["torch", "fp16"],
        "score_merges": ["mean", "max"],
        "backbones": [{"name": "resnet18", "weights": "none"}],
        "parameters": {"padim": {"dimensions": 9}},
        "execution": "f32",
        "benchmark": {"warmup": 1, "iterations": 3, "batch": 2, "throughput_iterations": 2},
    }
    return parse_config({key: value for key, value in {**table, **changes}.items() if value is not None})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(
        tmp_path_factory.mktemp("data") / "plates", size=SIZE, train=8, test_good=3, test_defective=4
    )


@pytest.fixture(scope="module")
def experiment(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict[str, Record]]:
    """Run once: the configuration, its folder (the run kept), and lines by precision and merge."""
    config, folder = make_config(data), tmp_path_factory.mktemp("experiment")
    run_jobs(make_plan(config, folder).jobs, folder, keep=True)
    records = make_plan(config, folder).records
    return config, folder, {f"{each.identity.precision} {each.identity.score_merge}": each for each in records}


def outcome(record: Record) -> Outcome:
    assert record.outcome is not None, record.failure
    return record.outcome


def test_every_line_is_there(experiment):
    _, _, records = experiment
    assert list(records) == ["torch mean", "torch max", "fp16 mean", "fp16 max"]
    for record in records.values():
        made = outcome(record)
        assert (made.image.normal, made.image.anomalous) == (3, 4)
        assert made.pixel is not None
        assert made.metrics_size == SIZE
        assert (made.training_images, made.held_out_images, made.weights) == (6, 2, "none")
        assert made.training_s is not None
        assert made.training_s > 0
        assert made.evaluation_ms > 0
        assert "torch" in made.versions


def test_scores_are_those_of_the_trained_run(experiment, data: Path):
    config, folder, records = experiment
    run = RunFolder.open(folder / "runs" / next(cells(config)).folder_name / "run")
    dataset = read_dataset(data)
    images = open_cache(dataset.test, SIZE).images
    with run_detector(run) as detector:
        tiles = np.concatenate([detector.raw(image[None]).tile_scores for image in images])
    labels = [sample.label for sample in dataset.test]
    for merge, expected in (("mean", tiles.mean(1)), ("max", tiles.max(1))):
        made = outcome(records[f"torch {merge}"])
        np.testing.assert_allclose([each.score for each in made.images], expected, rtol=1e-5)
        assert made.image.auroc == image_auroc(expected, labels)
        assert [each.label for each in made.images] == labels
        assert [data / each.path for each in made.images] == [sample.path for sample in dataset.test]
    # The run's own threshold was fitted for the mean; the maximum has one of its own
    threshold = run.normalisation().score.threshold
    assert outcome(records["torch mean"]).image.threshold == pytest.approx(threshold, rel=1e-5)
    assert outcome(records["torch max"]).image.threshold > threshold


def test_bundles_are_measured_and_timed(experiment):
    _, folder, records = experiment
    torch, fp16 = outcome(records["torch mean"]), outcome(records["fp16 mean"])
    (bundle,) = folder.glob("runs/*/fp16.edgead")
    assert fp16.size_bytes == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert fp16.graphs == {"fp16": 5}
    assert (fp16.executed, fp16.parity[0].execution_precision) == ("CPU f32", "f32")
    assert (torch.size_bytes, torch.graphs, torch.parity, torch.benchmark) == (None, {}, (), None)
    assert torch.parameters > 0
    timing = fp16.benchmark
    assert timing is not None
    assert (timing.protocol, timing.warmup, timing.iterations, timing.throughput_batch) == ("shortened", 1, 3, 2)
    assert timing.latency_mean_ms > 0
    assert timing.bare_ratio > 0
    assert timing.throughput_images_per_s is not None
    # torch alone would be more than that
    assert timing.resident_peak_bytes is None or timing.resident_peak_bytes < 250 * 2**20
    assert fp16.benchmark == outcome(records["fp16 max"]).benchmark


def test_defect_areas_are_those_of_the_masks(experiment, data: Path):
    _, _, records = experiment
    for sample, image in zip(read_dataset(data).test, outcome(records["fp16 max"]).images, strict=True):
        expected = read_mask(sample.masks[0]).mean() if sample.masks else None
        assert image.defect_area == defect_area(sample) == expected


def test_settings_that_are_not_the_defaults_are_what_is_measured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a set whose regions need not be found whole, and that holds out no images of its own."""
    data = COUNTED.write(
        tmp_path / "plates", size=SIZE, train=8, validation=0, test_good=3, test_logical=3, test_structural=3
    )
    asked: list[ExportOptions] = []

    def exported(*arguments: Any) -> None:
        asked.extend(each for each in arguments if isinstance(each, ExportOptions))
        raise EdgeAdError("seen enough")

    monkeypatch.setattr(measure, "export_run", exported)
    changes: dict[str, Any] = {
        "datasets": [{"path": str(data), "layout": "loco"}],
        "setups": [{"name": "whole", "image_size": list(SIZE), "tile_size": list(SIZE)}],
        "backbones": [{"name": BACKBONE, "weights": "none"}],
        "precisions": ["torch", "fp32"],
        "score_merges": ["mean"],
        "benchmark": None,
        "held_out": 0.5,
        "metrics_size": [32, 32],
        "pro_limit": 0.1,
        "spro_limit": 0.4,
        "format": "onnx",
        "parity_tolerance": 0.25,
    }
    config, folder = make_config(data, **changes), tmp_path / "experiment"
    run_jobs(make_plan(config, folder).jobs, folder, keep=True)
    made = outcome(make_plan(config, folder).records[0])
    assert [(each.format, each.precision, each.parity_tolerance) for each in asked] == [
        (Format.ONNX, Precision.FP32, 0.25)
    ]
    run = RunFolder.open(next(folder.glob("runs/*/run")))
    assert (made.training_images, made.held_out_images, len(run.settings.data.held_out)) == (4, 4, 4)

    dataset = read_dataset(data, "loco")
    images = open_cache(dataset.test, SIZE).images
    with run_detector(run, batch_size=measure.TORCH_BATCH) as detector:
        maps = [detector.raw(image[None]).maps[0].copy() for image in images]
        pixel = evaluate(
            detector,
            images,
            dataset.test,
            threshold=0.0,
            batch_size=measure.TORCH_BATCH,
            metrics_size=(32, 32),
            pro_limit=0.1,
            defects_config=read_defects_config(data / "defects_config.json"),
            spro_limit=0.4,
        ).pixel
    assert made.pixel is not None
    assert made.spro is not None
    assert pixel is not None
    assert pixel.spro is not None
    assert asdict(made.pixel) == pytest.approx(asdict(pixel.metrics), rel=1e-4)
    assert made.spro.auspro_by_defect == pytest.approx(pixel.spro.metrics.auspro_by_defect, rel=1e-4)
    assert (made.spro.regions, made.spro.limit) == (pixel.spro.metrics.regions, 0.4)
    # And by other means: all pixels of all maps at that size
    values = [cv2.resize(anomaly_map, (32, 32), interpolation=cv2.INTER_LINEAR) for anomaly_map in maps]
    masks = [read_masks(sample, SIZE, (32, 32)) for sample in dataset.test]
    assert made.pixel.auroc == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(values)), rel=1e-4)


def test_a_run_that_was_begun_is_continued_and_removed_afterwards(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(data, precisions=["torch"], score_merges=["mean"], benchmark=None)
    (job,) = make_plan(config, tmp_path).jobs
    workspace = tmp_path / "runs" / job.cell.folder_name

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("edge_ad.training.trainer.fit_normalisation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_jobs([job], tmp_path)
    heads = {path: path.stat().st_mtime_ns for path in workspace.rglob("r0*.safetensors")}
    assert len(heads) == 4
    kept: list[dict[Path, int]] = []
    run_jobs(
        [job], tmp_path, told=lambda _: kept.append({path: path.stat().st_mtime_ns for path in heads if path.exists()})
    )
    assert kept == [heads]
    (record,) = make_plan(config, tmp_path).records
    assert outcome(record).training_s is None  # of a part no time is told
    assert not workspace.exists()


def test_a_damaged_run_is_trained_anew(data: Path, tmp_path: Path):
    config = make_config(data, precisions=["torch"], score_merges=["mean"], benchmark=None)
    (job,) = make_plan(config, tmp_path).jobs
    run = tmp_path / "runs" / job.cell.folder_name / "run"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{")
    run_jobs([job], tmp_path)
    (record,) = make_plan(config, tmp_path).records
    assert outcome(record).training_s is not None


def test_a_precision_that_fails_leaves_the_others(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("a bug\nin there")

    monkeypatch.setattr(measure, "export_run", broken)
    config = make_config(data, precisions=["fp16", "torch"], benchmark=None)
    run_jobs(make_plan(config, tmp_path).jobs, tmp_path)
    records = {each.identity: each for each in make_plan(config, tmp_path).records}
    failed = [each for each in records.values() if each.failure]
    assert [(each.identity.precision, each.identity.score_merge) for each in failed] == [
        (Variant.FP16, ScoreMerge.MEAN),
        (Variant.FP16, ScoreMerge.MAX),
    ]
    assert failed[0].failure is not None
    assert (failed[0].failure.error, failed[0].failure.message) == ("ValueError", "a bug in there")
    assert sum(each.outcome is not None for each in records.values()) == 2
    assert list(tmp_path.glob("runs/*/run/run.json"))  # kept, so that the export alone is tried again


def test_a_benchmark_that_fails_says_what_the_process_said(tmp_path: Path):
    with pytest.raises(EdgeAdError, match=r"exit code 2 and said: error: .*nowhere"):
        run_benchmark_process(tmp_path / "nowhere", BenchmarkEntry(1, 1), "CPU", ExecutionPrecision.AUTO)


def test_a_global_model_is_fused_as_trained_and_as_exported(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "plates", size=SIZE, train=16, test_good=3, test_defective=4)
    setup = {"name": "four+global", "image_size": list(SIZE), "tile_size": [32, 32], "global_model": True}
    changes: dict[str, Any] = {"score_merges": ["mean"], "benchmark": None, "setups": [setup], "held_out": 0.5}
    config, folder = make_config(data, **changes), tmp_path / "experiment"
    run_jobs(make_plan(config, folder).jobs, folder, keep=True)
    trained, exported = (outcome(record) for record in make_plan(config, folder).records)
    scores, same = (np.array([image.score for image in each.images]) for each in (trained, exported))
    # Fused scores lie around 0.5, those of the tiles alone do not; fp16 moves them a little
    np.testing.assert_allclose(scores, same, atol=0.05 * np.ptp(scores))
    # Thresholds are those of the run and of the bundle, not of held-out scores that were fused by themselves
    (workspace,) = folder.glob("runs/*")
    assert trained.image.threshold == RunFolder.open(workspace / "run").normalisation().score.threshold
    bundle = read_bundle(workspace / "fp16.edgead").manifest
    assert exported.image.threshold == bundle.normalisation.score.threshold


def test_random_weights_are_those_of_the_seed(experiment, data: Path, tmp_path: Path) -> None:
    _, _, records = experiment
    config = make_config(data, precisions=["torch"], score_merges=["mean"], benchmark=None)
    run_jobs(make_plan(config, tmp_path).jobs, tmp_path)
    (again,) = make_plan(config, tmp_path).records
    assert outcome(again).images == outcome(records["torch mean"]).images


def test_a_method_without_a_backbone_is_trained_once(data: Path) -> None:
    backbones = [{"name": "resnet18", "weights": "none"}, {"name": "tf_efficientnet_lite0"}]
    config = make_config(data, methods=["padim", "efficient_ad"], backbones=backbones)
    found = [(cell.method, cell.backbone.name, cell.arguments.get("weights")) for cell in cells(config)]
    assert found == [
        ("padim", "resnet18", "none"),
        ("padim", "tf_efficientnet_lite0", "auto"),
        ("efficient_ad", "resnet18", None),
    ]
