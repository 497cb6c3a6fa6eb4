"""One cell: trained once, then measured as it was trained and in every bundle exported from it."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge_ad
from edge_ad import atomic
from edge_ad.bundle.manifest import Parity, ScoreMerge
from edge_ad.data.cache import open_cache
from edge_ad.data.layouts import Dataset, Sample, read_dataset, read_masks
from edge_ad.data.saturation import DefectsConfig, defects_config_of
from edge_ad.errors import EmptyDataError, IncompleteRunError, RunMismatchError
from edge_ad.evaluation.evaluate import Evaluation, auroc_by_defect, evaluate
from edge_ad.evaluation.image_metrics import image_metrics
from edge_ad.evaluation.thresholds import ThresholdRule
from edge_ad.experiment.benchmark import run_benchmark_process
from edge_ad.experiment.config import Variant
from edge_ad.experiment.grid import Cell
from edge_ad.experiment.record import Benchmark, Identity, ImageScore, Outcome, Record, make_record
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.imaging import image_size
from edge_ad.methods import create_model
from edge_ad.methods.parts.seeding import seeded
from edge_ad.methods.tile_model import TileModel
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.raw_result import RawResult
from edge_ad.tiling import Size
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.torch_graph import head_graph, shared_graph
from edge_ad.training.trainer import TrainingImages, open_device, read_training_images, train

TORCH_BATCH = 8  # images the trained model scores at once; bundles are measured as they run, one by one


def run_cell(
    cell: Cell,
    folder: Path,
    todo: Collection[Identity],
    emit: Callable[[Record], object],
    *,
    threads: int | None = None,
    keep: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Train ``cell`` and measure what is wanted of it; a failure is a line too, and the rest goes on.

    Args:
        folder: of the experiment; the run and the bundles lie below ``runs`` until their lines are written, and stay
            where ``keep`` is true or something failed.
        todo: those of the cell's lines that are wanted.
        emit: takes each line as soon as it is known.
        threads: of inference; None: the engine's choice.
    """
    workspace = folder / "runs" / cell.folder_name
    failed = False

    def fail(identities: Collection[Identity], error: Exception) -> None:
        nonlocal failed
        failed = True
        for identity in identities:
            emit(make_record(identity, cell.settings(identity.precision), error))

    try:
        trained = _train(cell, workspace, progress)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other cells of the night go on; the line says it
        return fail(todo, error)
    for variant in cell.config.precisions:
        wanted = [identity for identity in todo if identity.precision is variant]
        if not wanted:
            continue
        try:
            outcomes = _measure(trained, variant, threads, progress)
        except Exception as error:  # noqa: BLE001 - as above
            fail(wanted, error)
            continue
        for identity in wanted:
            emit(make_record(identity, cell.settings(variant), outcomes[identity.score_merge]))
    if not keep and not failed:
        shutil.rmtree(workspace)
    return None


@dataclass(frozen=True)
class Trained:
    """A trained cell and the images to measure it on."""

    cell: Cell
    workspace: Path
    run: RunFolder
    images: TrainingImages
    training_s: float | None
    dataset: Dataset
    test: NDArray[np.uint8]  # (N, H, W, 3) RGB
    defect_areas: tuple[float | None, ...]  # fraction of each test image
    defects_config: DefectsConfig | None


def _train(cell: Cell, workspace: Path, progress: Progress) -> Trained:
    root, setup = cell.dataset.root, cell.setup.setup
    dataset = read_dataset(root, cell.dataset.layout, cell.category)
    if not dataset.test:
        raise EmptyDataError(f"{root} has no test images in layout {cell.dataset.layout!r}")
    defects_config = defects_config_of(dataset)
    images = read_training_images(
        dataset,
        setup,
        root=root,
        layout=cell.dataset.layout,
        category=cell.category,
        seed=cell.seed,
        held_out=cell.config.held_out,
        progress=progress,
    )
    with seeded(cell.seed):  # of an extractor with random weights
        model = create_model(cell.method, setup.tile_size, **cell.arguments)
    model.to(open_device(cell.config.training_device))
    run, training_s = _train_run(cell, model, images, workspace, progress)
    test = open_cache(dataset.test, setup.image_size, progress=progress).images
    areas = tuple(defect_area(sample) for sample in dataset.test)
    return Trained(cell, workspace, run, images, training_s, dataset, test, areas, defects_config)


def _train_run(
    cell: Cell, model: TileModel, images: TrainingImages, workspace: Path, progress: Progress
) -> tuple[RunFolder, float | None]:
    """The run, continued where it stopped, and its seconds where it was trained in one go."""
    path, timing = workspace / "run", workspace / "training.json"
    begun, start = path.exists(), time.perf_counter()
    try:
        run = train(
            model,
            cell.setup.setup,
            images,
            path,
            seed=cell.seed,
            score_merge=ScoreMerge.MEAN,  # a global model is fused with it; others need the tiles alone
            threshold_rule=cell.config.threshold,
            progress=progress,
        )
    except (RunMismatchError, IncompleteRunError):
        if not begun:
            raise
        shutil.rmtree(workspace)  # its name says the settings: it is damaged, of another release or of other images
        return _train_run(cell, model, images, workspace, progress)
    if not begun:
        atomic.write_json(timing, {"training_s": time.perf_counter() - start})
    return run, json.loads(timing.read_text(encoding="utf-8"))["training_s"] if timing.exists() else None


def defect_area(sample: Sample) -> float | None:
    """Fraction of the image inside its masks; None without masks."""
    return float(read_masks(sample, image_size(sample.path)).mean()) if sample.masks else None


@dataclass(frozen=True)
class _Cost:
    """What is known of a model beside its accuracy."""

    parameters: int
    versions: dict[str, str]
    size_bytes: int | None = None
    graphs: dict[str, int] = field(default_factory=dict)
    parity: tuple[Parity, ...] = ()
    benchmark: Benchmark | None = None


def _measure(trained: Trained, variant: Variant, threads: int | None, progress: Progress) -> dict[ScoreMerge, Outcome]:
    """An outcome per score merge."""
    cell = trained.cell
    if variant.precision is None:
        norm = trained.run.normalisation()  # of it only what a global model is fused by counts here
        model = trained.run.model().to(open_device(cell.config.training_device))
        with run_detector(trained.run, model, normalisation=norm, batch_size=TORCH_BATCH) as detector:
            cost = _Cost(_run_parameters(trained.run), detector.manifest.provenance.versions)
            return _outcomes(trained, detector, cost, progress)
    bundle = trained.workspace / f"{variant}.edgead"
    options = ExportOptions(
        cell.config.format, variant.precision, parity_tolerance=cell.config.parity_tolerance, overwrite=True
    )
    manifest = export_run(trained.run, trained.images, bundle, options, progress)
    cost = _Cost(
        parameters=sum(graph.parameters for graph in manifest.graphs),
        versions=manifest.provenance.versions,
        size_bytes=sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
        graphs=dict(Counter(str(graph.precision) for graph in manifest.graphs)),
        parity=manifest.parity,
        benchmark=(
            run_benchmark_process(bundle, cell.benchmark, cell.config.device, cell.config.execution)
            if cell.benchmark
            else None
        ),
    )
    device = cell.config.device
    on_cpu = threads if device == "CPU" else None  # others have no number of threads
    with edge_ad.load(bundle, device, precision=cell.config.execution, threads=on_cpu) as detector:
        return _outcomes(trained, detector, cost, progress)


def _outcomes(trained: Trained, detector: Detector, cost: _Cost, progress: Progress) -> dict[ScoreMerge, Outcome]:
    """Maps are measured once: merges differ in image scores alone, and in the thresholds fitted to those."""
    cell, samples = trained.cell, trained.dataset.test
    held_out = _TileScores(detector)
    for start in range(0, len(trained.images.held_out), detector.batch_size):
        held_out.raw(trained.images.held_out[start : start + detector.batch_size])
    recorded = _TileScores(detector)
    evaluation = evaluate(
        recorded,
        trained.test,
        samples,
        threshold=detector.manifest.normalisation.score.threshold,
        batch_size=detector.batch_size,
        metrics_size=cell.config.metrics_size,
        pro_limit=cell.config.pro_limit,
        defects_config=trained.defects_config,
        spro_limit=cell.config.spro_limit,
        progress=progress,
    )
    executed = f"{detector.device} {detector.precision}"
    rule, norm = ThresholdRule.parse(cell.config.threshold), detector.manifest.normalisation
    outcomes = {}
    for merge in cell.config.score_merges:
        # Held-out scores took part in their own fusion: thresholds of fused ones are fitted by leaving each out
        threshold = norm.score.threshold if norm.fusion else rule.fit(held_out.merged(merge))
        outcomes[merge] = _outcome(trained, evaluation, recorded.merged(merge), threshold, executed, cost)
    return outcomes


class _TileScores:
    """A detector that remembers the scores of every image it was shown."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.seen: list[RawResult] = []

    @property
    def image_size(self) -> Size:
        """See `Predictor`."""
        return self.detector.image_size

    def raw(self, images: NDArray[np.uint8]) -> RawResult:
        """See `Predictor`."""
        raw = self.detector.raw(images)
        self.seen.append(replace(raw, maps=raw.maps[:0].copy(), global_maps=None))
        return raw

    def merged(self, merge: ScoreMerge) -> NDArray[np.float32]:
        """Image scores (N,) as the detector would have merged them; with a global model, as it did."""
        if self.detector.manifest.setup.global_model:
            return np.concatenate([raw.scores for raw in self.seen])
        return merge.of(np.concatenate([raw.tile_scores for raw in self.seen]))


def _outcome(
    trained: Trained,
    evaluation: Evaluation,
    scores: NDArray[np.float32],
    threshold: float,
    executed: str,
    cost: _Cost,
) -> Outcome:
    samples, source, pixel = evaluation.samples, trained.images.source, evaluation.pixel
    root = trained.cell.dataset.root
    image, _ = image_metrics(scores, evaluation.labels, threshold)
    return Outcome(
        image=image,
        auroc_by_defect=auroc_by_defect(scores, samples),
        pixel=pixel.metrics if pixel else None,
        lost_masks=pixel.lost_regions if pixel else None,
        metrics_size=pixel.size if pixel else None,
        aupro_by_defect=pixel.aupro_by_defect if pixel else None,
        spro=pixel.spro.metrics if pixel and pixel.spro else None,
        images=tuple(
            ImageScore(sample.path.relative_to(root).as_posix(), sample.label, sample.defect, score, area)
            for sample, score, area in zip(samples, scores.tolist(), trained.defect_areas, strict=True)
        ),
        training_s=trained.training_s,
        kept_step=_kept_step(trained.run),
        training_images=len(source.training),
        held_out_images=len(source.held_out),
        data_digest=source.digest,
        weights=trained.run.settings.weights,
        parameters=cost.parameters,
        size_bytes=cost.size_bytes,
        graphs=cost.graphs,
        parity=cost.parity,
        executed=executed,
        evaluation_ms=evaluation.predictions.ms_per_image,
        benchmark=cost.benchmark,
        versions=cost.versions,
    )


def _kept_step(run: RunFolder) -> float | None:
    """Of the last stage of training, the mean over tile models."""
    losses = [run.losses(location) for location in run.settings.setup.model_locations]
    return float(np.mean([stages[-1].kept_step for stages in losses])) if all(losses) else None


def _run_parameters(run: RunFolder) -> int:
    model = run.model()
    shared = shared_graph(model)
    heads = [head_graph(model, run.head(model, at), shared) for at in run.settings.setup.model_locations]
    return shared.parameters + sum(head.parameters for head in heads)
