"""The whole road on synthetic plates, without data or network: images, training, int8 export, inspection, figures.

Everything is made by the same functions the commands call, and put together as one HTML page. What is there from an
earlier call is used again, so that a second call takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad import atomic, page
from edge_ad.benchmarks.rendering import tables
from edge_ad.benchmarks.report import BenchmarkReport
from edge_ad.benchmarks.run import run_benchmark
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, Manifest, Precision
from edge_ad.data.cache import open_cache
from edge_ad.data.layouts import Dataset, Sample, read_dataset, read_masks
from edge_ad.data.synthetic import write_synthetic
from edge_ad.errors import OutputExistsError, UnreadableImageError
from edge_ad.evaluation.evaluate import Evaluation, evaluate
from edge_ad.evaluation.report import curves_png, write_report
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.imaging import encode_png
from edge_ad.methods import create_model
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime import overlay
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.loading import load
from edge_ad.runtime.predictions import OVERLAYS, predict_files, prepare_output
from edge_ad.runtime.result import Result
from edge_ad.runtime.verify import verify_bundle
from edge_ad.setups import Setup, make_setup
from edge_ad.tiling import format_size
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.trainer import TrainingImages, read_training_images
from edge_ad.training.trainer import train as train_run

SETUP = "ens9"
METHOD, BACKBONE = "padim", "tf_efficientnet_lite0"
WARMUP, ITERATIONS = 20, 60  # of the shortened benchmark
PAGE = "index.html"
_DATA, _RUN, _BUNDLE, _PREDICTIONS, _EVALUATION = "data", "run", "bundle.edgead", "predictions", "evaluation"
_SHOWN_PER_KIND = 2

COMMANDS = f"""\
edge-ad train --data demo/data --method {METHOD} --setup {SETUP} --backbone {BACKBONE} -o demo/run
edge-ad export demo/run --format openvino --precision int8 -o demo/bundle.edgead
edge-ad verify demo/bundle.edgead
edge-ad predict demo/bundle.edgead demo/data/test/scratch -o out
edge-ad evaluate demo/bundle.edgead --data demo/data
edge-ad benchmark demo/bundle.edgead"""


@dataclass(frozen=True)
class Demo:
    """What the demo made, and what it found."""

    page: Path
    trained: Evaluation
    exported: Evaluation
    benchmark: BenchmarkReport


def run_demo(
    output: Path,
    progress: Progress = no_progress,
    *,
    setup: str = SETUP,
    train: int = 40,
    test_good: int = 10,
    test_defective: int = 20,
    iterations: int = ITERATIONS,
) -> Demo:
    """Make everything below ``output`` and return what was found.

    Args:
        output: a folder; what an earlier demo left in it is used again, if made with the same arguments.
        setup: a name of `edge_ad.setups.SETUPS`.
        train, test_good, test_defective: number of plates.
        iterations: timed runs of the benchmark.

    Raises:
        OutputExistsError: ``output`` holds something that no earlier demo made.
        ParityError: the export does not reproduce the trained model; also every error of the steps.
    """
    if output.exists() and not (output / _DATA).is_dir() and any(output.iterdir()):
        raise OutputExistsError(f"{output} is not empty and holds no earlier demo; choose another -o")
    data, bundle = output / _DATA, output / _BUNDLE
    if not data.exists():
        write_synthetic(data, train=train, test_good=test_good, test_defective=test_defective, progress=progress)
    dataset = read_dataset(data)
    run, images = _train(dataset, data, make_setup(setup), output / _RUN, progress)
    options = ExportOptions(Format.OPENVINO, Precision.INT8, overwrite=True)
    manifest = export_run(run, images, bundle, options, progress)
    test = open_cache(dataset.test, manifest.setup.image_size, progress=progress).images
    with run_detector(run, normalisation=run.normalisation()) as detector:
        trained = _evaluate(detector, test, dataset.test, progress)
    with load(bundle) as detector:
        verify_bundle(detector, read_bundle(bundle, check_hashes=False))
        exported = _evaluate(detector, test, dataset.test, progress)
        results = _predict(detector, dataset.test, output / _PREDICTIONS, progress)
        tiles = _tiles_picture(detector, results, dataset.test)
    title = "int8 bundle on synthetic plates"
    write_report(output / _EVALUATION, exported, title, model=_BUNDLE, data=_DATA)
    benchmark = run_benchmark(bundle, warmup=WARMUP, iterations=iterations, batch=0, progress=progress)
    atomic.write_json(output / "benchmark.json", benchmark.to_json())
    parts = [
        *_summary(manifest, trained, exported, benchmark),
        page.figure(tiles, "A plate as it is; and its tiles with the raw score of each, and what was found."),
        *_pictures(dataset.test, results, output / _PREDICTIONS),
        *_accuracy(trained, exported),
        page.figure(curves_png(exported, title), "Curves of the int8 bundle."),
        *_speed(benchmark),
        page.heading("The same by hand"),
        page.code(COMMANDS),
    ]
    atomic.write_text(output / PAGE, page.page("edge-ad: from images to a detector on the edge", *parts))
    return Demo(output / PAGE, trained, exported, benchmark)


def _train(
    dataset: Dataset, data: Path, setup: Setup, path: Path, progress: Progress
) -> tuple[RunFolder, TrainingImages]:
    images = read_training_images(dataset, setup, root=data, layout="mvtec", category=None, seed=0, progress=progress)
    model = create_model(METHOD, setup.tile_size, backbone=BACKBONE)
    return train_run(model, setup, images, path, seed=0, progress=progress), images


def _evaluate(
    detector: Detector, images: NDArray[np.uint8], samples: Sequence[Sample], progress: Progress
) -> Evaluation:
    threshold = detector.manifest.normalisation.score.threshold
    return evaluate(detector, images, samples, threshold=threshold, progress=progress)


def _predict(detector: Detector, samples: Sequence[Sample], output: Path, progress: Progress) -> dict[Path, Result]:
    """The result of every test image, by its file; overlays and masks below ``output``."""
    prepare_output(output, overwrite=True)
    named = [(_name(sample), sample.path) for sample in samples]
    results = {}
    for prediction in predict_files(detector, named, output):
        if prediction.result is None:
            raise prediction.error or UnreadableImageError(str(prediction.path))
        results[prediction.path] = prediction.result
        progress(len(results), len(named), "inspecting")
    return results


def _name(sample: Sample) -> str:
    return f"{sample.defect}_{sample.path.stem}"


def _tiles_picture(detector: Detector, results: dict[Path, Result], samples: Sequence[Sample]) -> bytes:
    """The defective plate of highest score, as it is and with everything drawn on it, side by side."""
    result = max((results[sample.path] for sample in samples if sample.label), key=lambda result: result.raw_score)
    return encode_png(np.hstack([result.frame, overlay.draw(result, detector.grid)]))


def _summary(
    manifest: Manifest, trained: Evaluation, exported: Evaluation, benchmark: BenchmarkReport
) -> list[page.Part]:
    setup, bundle = manifest.setup, benchmark.bundle
    torch_ms = trained.predictions.ms_per_image
    return [
        page.paragraph(
            f"{manifest.provenance.training_images} images of good plates trained {len(setup.model_locations)} tile "
            f"models on features of {manifest.method.backbone} ({manifest.provenance.weights}). The extractor was "
            "quantised to int8, the heads were fitted anew on its features, and the bundle was compared with the "
            "trained model before it was written. All figures were measured in this run, on this machine, on plates "
            "the models had not seen."
        ),
        page.facts(
            {
                "image AUROC": f"{exported.image.auroc:.3f}",
                "AUPRO, false positives up to 30 %": f"{_aupro(exported):.3f}",
                f"per {format_size(setup.image_size)} image": f"{benchmark.latency_ms:.0f} ms",
                "the trained model in PyTorch": f"{torch_ms:.0f} ms",
                "bundle": f"{bundle.size_bytes / 1e6:.0f} MB",
                "detector over its bare graphs": f"{(benchmark.latency.bare_ratio - 1) * 100:.1f} %",
            }
        ),
    ]


def _pictures(samples: Sequence[Sample], results: dict[Path, Result], output: Path) -> list[page.Part]:
    """Overlays of a few plates of every kind, with what they show and what was said of them."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.defect, []).append(sample)
    figures = [
        page.figure((output / OVERLAYS / f"{_name(sample)}.png").read_bytes(), _caption(sample, results[sample.path]))
        for kind in kinds.values()
        for sample in kind[:_SHOWN_PER_KIND]
    ]
    return [
        page.heading("What it finds"),
        page.paragraph(
            "Heat from 0 to 1 with 0.5 at the threshold, outlines and boxes where the map is above it. "
            f"All {len(samples)} test plates are in {output.name}/{OVERLAYS}."
        ),
        page.gallery(figures),
    ]


def _caption(sample: Sample, result: Result) -> str:
    verdict = f"{'anomalous' if result.pred_label else 'normal'}, score {result.pred_score:.2f}"
    if not sample.label:
        return f"good plate: {verdict}"
    share = read_masks(sample, result.original_size).mean() * 100
    return f"{sample.defect}, {share:.2f} % of the area: {verdict}"


def _accuracy(trained: Evaluation, exported: Evaluation) -> list[page.Part]:
    rows = []
    for name, each in (("trained, PyTorch float32", trained), ("exported, OpenVINO int8", exported)):
        pixel = each.pixel
        assert pixel is not None  # synthetic plates have masks
        rows.append(
            (
                name,
                f"{each.image.auroc:.4f}",
                f"{each.image.aupr:.4f}",
                f"{each.image.f1:.4f}",
                f"{pixel.metrics.auroc:.4f}",
                f"{pixel.metrics.aupro:.4f}",
            )
        )
    image, confusion = exported.image, exported.image.confusion
    caption = (
        f"{image.normal} good and {image.anomalous} defective plates. F1 at the threshold, fitted on good plates that "
        f"were held out of training: {confusion.true_positives} of {image.anomalous} defects found, "
        f"{confusion.false_positives} false alarms."
    )
    headers = ("model", "image AUROC", "image AUPR", "F1", "pixel AUROC", "AUPRO")
    kinds = [(kind, f"{auroc:.4f}") for kind, auroc in exported.auroc_by_defect.items()]
    return [
        page.heading("Accuracy"),
        page.table(headers, rows, caption),
        page.table(("kind of defect", "image AUROC"), kinds),
    ]


def _speed(benchmark: BenchmarkReport) -> list[page.Part]:
    return [
        page.heading("Speed"),
        page.paragraph(benchmark.definition + "."),
        *(page.table(table.headers, table.rows, table.title) for table in tables(benchmark)),
        *(page.paragraph(f"Warning: {text}.") for text in benchmark.warnings),
    ]


def _aupro(evaluation: Evaluation) -> float:
    assert evaluation.pixel is not None  # synthetic plates have masks
    return evaluation.pixel.metrics.aupro
