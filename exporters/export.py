"""From a run folder to a bundle: convert, quantise, refit, prove, write.

1. The shared extractor is converted once; for int8 it is quantised over tiles of all locations.
2. The trained heads are taken. For int8 a method has them fitted anew on the quantised extractor's features instead, or
   quantised (`edge_ad.methods.tile_model.HeadInt8`).
3. Thresholds are fitted on the held-out images with the exported graphs themselves.
4. The bundle is compared with the torch model, in float32 and in the device's default precision; the first comparison
   gates the export, the second warns.
5. Two golden images let any machine prove itself later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_ad.bundle.files import ROI_NAME, file_entry, staged_bundle, write_manifest
from edge_ad.bundle.manifest import (
    Format,
    Golden,
    Graph,
    Manifest,
    Normalisation,
    NormalisationStage,
    Parity,
    Precision,
    Role,
    Scale,
)
from edge_ad.evaluation.evaluate import Predictions, predict
from edge_ad.exporters import onnx_graph, openvino_ir
from edge_ad.exporters.parity import (
    check_accuracy,
    check_parity,
    compare,
    plant_defects,
    shortfall,
)
from edge_ad.exporters.quantisation import calibration_tiles, head_feeds, quantise, quantise_head
from edge_ad.imaging import encode_png
from edge_ad.methods.tile_model import Extract, HeadInt8, TileModel, TileStream, location_seed
from edge_ad.progress import Progress, no_progress
from edge_ad.runtime.loading import open_detector
from edge_ad.runtime.session import ExecutionPrecision, Session
from edge_ad.runtime.sessions import open_session
from edge_ad.runtime.verify import coarse_map
from edge_ad.tiling import FeatureAxes, Location
from edge_ad.training.calibration import fit_normalisation
from edge_ad.training.extractor import extractor_model, extractor_stream, held_features
from edge_ad.training.run_detector import RAW, run_detector, run_manifest
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.torch_graph import TorchGraph, head_graph, shared_graph
from edge_ad.training.trainer import TrainingImages

PARITY_IMAGES = 16  # up to half of them normal, the others with a planted defect: ranks of fewer would say little
REFIT_BATCH = 8
VERIFY_TOLERANCE = 0.02  # of the distance from low to threshold
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """How a format converts a torch graph and writes the result; ``write`` returns the files, the one to open first.

    ``channels_last`` turns feature maps to the order its engine computes in, None where it computes channels first.
    ``halve_arithmetic`` makes a graph compute in half precision, None where its engine is told so when it loads one.
    ``multiplies_int8``: whether its engine multiplies matrices in int8 where `TileModel.in_int8` asks for it.
    """

    convert: Callable[[TorchGraph], Any]
    write: Callable[..., tuple[Path, ...]]
    channels_last: Callable[[Any, Collection[str]], Any] | None
    halve_arithmetic: Callable[[Any], Any] | None
    multiplies_int8: bool

    def turned(self, model: TileModel) -> tuple[str, ...]:
        """Names of the feature maps that graphs exchange in another order than the method's."""
        turns = self.channels_last and model.feature_axes is FeatureAxes.NCHW
        return model.feature_names if turns else ()


WRITERS = {
    Format.OPENVINO: Writer(
        openvino_ir.convert, openvino_ir.write, openvino_ir.channels_last, halve_arithmetic=None, multiplies_int8=True
    ),
    Format.ONNX: Writer(onnx_graph.convert, onnx_graph.write, None, onnx_graph.halve_arithmetic, multiplies_int8=False),
}


@dataclass(frozen=True)
class ExportOptions:
    """What the user may choose.

    Args:
        format, precision: of the graphs.
        accuracy_drop: gate on image AUROC lost on planted defects, a fraction; None: not gated.
        parity_tolerance, rank_correlation: replace the precision's own (`edge_ad.exporters.parity.TOLERANCES`).
        overwrite: replace an existing bundle, or an empty folder; anything else stays.
    """

    format: Format = Format.OPENVINO
    precision: Precision = Precision.INT8
    accuracy_drop: float | None = None
    parity_tolerance: float | None = None
    rank_correlation: float | None = None
    overwrite: bool = False


def export_run(
    run: RunFolder,
    images: TrainingImages,
    output: Path,
    options: ExportOptions = ExportOptions(),
    progress: Progress = no_progress,
) -> Manifest:
    """Write the bundle ``output`` of a complete run and return its manifest.

    Args:
        run: complete.
        images: the run's own training images, or others to calibrate and refit on.

    Raises:
        IncompleteRunError: tile models or thresholds are missing.
        ParityError, AccuracyDropError: a gate was not met; nothing is written.
        OutputExistsError, OutputWriteError: see `staged_bundle`.
    """
    trained = run.normalisation()
    with staged_bundle(Path(output), overwrite=options.overwrite) as stage:
        model = run.model()
        graphs = _write_graphs(stage, run, model, images, options, progress)
        raw = replace(run_manifest(run, RAW), format=options.format, precision=options.precision, graphs=graphs)
        if images.roi:
            (stage / ROI_NAME).write_bytes(images.roi.png())
            raw = replace(raw, roi=file_entry(stage, ROI_NAME))
        if WRITERS[options.format].turned(model):
            raw = replace(raw, feature_axes=FeatureAxes.NHWC)
        with open_detector(stage, raw, precision=ExecutionPrecision.F32) as detector:
            normalisation = fit_normalisation(
                detector,
                images.held_out,
                rule=run.settings.threshold_rule,
                stage=run.settings.normalisation_stage,
                progress=progress,
            )
        manifest = _prove(
            stage, run, model, replace(raw, normalisation=normalisation), trained, images, options, progress
        )
        write_manifest(stage, manifest)
    return manifest


def _write_graphs(
    stage: Path, run: RunFolder, model: TileModel, images: TrainingImages, options: ExportOptions, progress: Progress
) -> tuple[Graph, ...]:
    setup = run.settings.setup
    (stage / "graphs").mkdir()
    graphs = _Graphs(stage, run, model, options)
    extractor = extractor_model(model, setup)
    written = [graphs.shared(extractor, images, progress)]
    extract: Extract = extractor.extract
    image_features = None
    if graphs.quantised:
        path = stage / written[0].files[0].path
        extract = EngineExtract(
            open_session(path, options.format, "CPU", precision=ExecutionPrecision.F32, batch_size=REFIT_BATCH),
            model.feature_names,
            turned=bool(graphs.turned),
        )
        image_features = held_features(setup, images.fit, extract, REFIT_BATCH, model.device)
    tile_features = shared_graph(model)
    same_images = images.source.training == run.settings.data.training
    for index, location in enumerate(setup.model_locations):
        progress(index, len(setup.model_locations), f"exporting {location.name}")
        own = TileStream(
            images.fit,
            setup.grid,
            setup.tiles_of(location),
            extract,
            REFIT_BATCH,
            with_image=model.head_takes_image,
            image_features=image_features,
            feature_axes=model.feature_axes,
        )
        written.append(graphs.head(location, own, tile_features, same_images=same_images))
    progress(1, 1, "exported")
    if isinstance(extract, EngineExtract):
        extract.session.close()
    return tuple(written)


@dataclass(frozen=True)
class _Graphs:
    """Converts and writes the graphs of one bundle, one at a time."""

    stage: Path
    run: RunFolder
    model: TileModel
    options: ExportOptions

    @property
    def writer(self) -> Writer:
        return WRITERS[self.options.format]

    @property
    def quantised(self) -> bool:
        return self.options.precision is Precision.INT8

    @property
    def turned(self) -> tuple[str, ...]:
        return self.writer.turned(self.model)

    def shared(self, extractor: TileModel, images: TrainingImages, progress: Progress) -> Graph:
        """The extractor's; quantised over tiles of all locations of ``images``."""
        graph = shared_graph(extractor)
        converted = self.writer.convert(graph)
        if self.quantised:
            progress(0, 1, "quantising the extractor")
            stream = extractor_stream(self.run.settings.setup, images.fit, extractor.extract, REFIT_BATCH)
            feeds = [{"image": tile[None]} for tile in calibration_tiles(stream)]
            converted = quantise(converted, feeds, self.options.format)
        return self._write(converted, graph, None, self.options.precision, keep_f32=False)

    def head(self, location: Location, own: TileStream, tile_features: TorchGraph, *, same_images: bool) -> Graph:
        """A location's; for int8 as its method has it: see `HeadInt8`.

        Args:
            own: the location's tiles with their features.
            tile_features: the extractor over a tile.
            same_images: whether ``own`` is what the head was trained on.
        """
        model, options = self.model, self.options
        head = self.run.head(model, location)
        if self.quantised:
            seed = location_seed(self.run.settings.seed, location)
            if model.head_int8 is not HeadInt8.REFIT:
                head = model.adapt(head, own, seed)
            else:
                head = model.refit(head, own, seed) if same_images else model.fit(own, seed)
        whole = model.in_int8(head) if self.quantised and self.writer.multiplies_int8 else None
        graph = head_graph(model, whole or model.for_engines(head), tile_features)
        converted, stored = self.writer.convert(graph), options.precision
        if self.quantised and model.head_int8 is HeadInt8.QUANTISE:
            feeds = head_feeds(own, [spec.name for spec in graph.inputs])
            converted = quantise_head(converted, feeds, options.format)
        elif self.quantised and not whole:
            stored = Precision.FP16  # in float, stored in half precision
        # What is left in float beside products in int8 is cheap
        return self._write(converted, graph, location, stored, keep_f32=model.head_keeps_f32 or whole is not None)

    def _write(
        self, converted: Any, graph: TorchGraph, location: Location | None, precision: Precision, *, keep_f32: bool
    ) -> Graph:
        """Stored in ``precision``; bundles of fp16 also compute in it, but for what is to ``keep_f32``."""
        if self.writer.channels_last and self.turned:
            converted = self.writer.channels_last(converted, self.turned)
        half = precision is not Precision.FP32
        if self.writer.halve_arithmetic and self.options.precision is Precision.FP16 and not keep_f32:
            converted, half = self.writer.halve_arithmetic(converted), False  # its constants are half already
        files = self.writer.write(
            converted,
            self.stage / "graphs" / (location.name if location else "shared"),
            half=half,
        )
        return Graph(
            role=Role.HEAD if location else Role.SHARED,
            location=(location.row, location.col) if location else None,
            precision=precision,
            files=tuple(file_entry(self.stage, file.relative_to(self.stage).as_posix()) for file in files),
            keep_f32=keep_f32,
            parameters=graph.parameters,
            flops=graph.flops(),
        )


class EngineExtract:
    """Features by an exported extractor: what `TileStream` wants, from a session of fixed batch size.

    Args:
        session: of the extractor.
        names: of its outputs, in the order wanted.
        turned: whether they come as (n, h', w', C) where the method wants (n, C, h', w').
    """

    def __init__(self, session: Session, names: Sequence[str], *, turned: bool) -> None:
        self.session = session
        self.names = names
        self.turned = turned
        self._buffer = np.zeros(session.inputs["image"].shape, np.uint8)

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of tiles uint8 (n, h, w, 3)."""
        size = len(self._buffer)
        parts = [self._run(image[start : start + size]) for start in range(0, len(image), size)]
        return tuple(torch.cat(feature) for feature in zip(*parts, strict=True))

    def _run(self, image: Tensor) -> list[Tensor]:
        count = len(image)
        self._buffer[:count] = image.numpy()
        outputs = self.session.run({"image": self._buffer})
        features = [torch.from_numpy(self.session.fetch(outputs[name])[:count].copy()) for name in self.names]
        return [feature.permute(0, 3, 1, 2).contiguous() for feature in features] if self.turned else features


def _prove(
    stage: Path,
    run: RunFolder,
    model: TileModel,
    manifest: Manifest,
    trained: Normalisation,
    images: TrainingImages,
    options: ExportOptions,
    progress: Progress,
) -> Manifest:
    """Add parity and golden images to ``manifest``, or raise where a gate is not met."""
    normal = images.held_out[: PARITY_IMAGES // 2]
    repeated = np.arange(PARITY_IMAGES - len(normal)) % len(normal)  # every defect is another
    planted = plant_defects(normal[repeated], images.roi.inside if images.roi else None)
    probes = np.concatenate([normal, planted])
    progress(0, 3, "parity: torch")
    # Where values are scaled before they are merged or fused: alike on both sides, so that graphs are compared
    norm = manifest.normalisation
    scaled = norm.stage is NormalisationStage.TILE or norm.fusion is not None
    scales = (norm.score if scaled else trained.score, norm.score)
    with run_detector(run, model, normalisation=norm) as detector:
        reference = predict(detector, probes)
    results: dict[str, tuple[Predictions, Parity]] = {}
    for step, precision in enumerate((ExecutionPrecision.F32, ExecutionPrecision.AUTO)):
        progress(step + 1, 3, f"parity: {options.format} {precision}")
        with open_detector(stage, manifest, precision=precision) as detector:
            if detector.precision in results:  # this device's default is f32
                continue
            exported = predict(detector, probes)
            parity = compare(
                reference,
                exported,
                scales,
                execution_precision=detector.precision,
                device=detector.device,
            )
        results[parity.execution_precision] = exported, parity
    (exported, exact), *others = results.values()
    limits = options.precision, options.parity_tolerance, options.rank_correlation
    check_parity(exact, *limits)
    for _, parity in others:
        if reason := shortfall(parity, *limits):
            _LOGGER.warning(
                "warning: %s, which is this device's default: run the bundle with --precision f32, that is "
                'edge_ad.load(..., precision="f32")',
                reason,
            )
    if options.accuracy_drop is not None:
        check_accuracy(reference, exported, np.arange(len(probes)) >= len(normal), options.accuracy_drop)
    progress(3, 3, "parity")
    outputs = [found for found, _ in results.values()]
    return replace(
        manifest,
        golden=_golden(stage, probes, outputs, len(normal), norm),
        parity=tuple(parity for _, parity in results.values()),
        parity_tolerance=_tolerance([each.scores for each in outputs], norm.score) / _span(norm.score),
    )


def _golden(
    stage: Path, probes: NDArray[np.uint8], outputs: Sequence[Predictions], normal: int, norm: Normalisation
) -> tuple[Golden, ...]:
    """One of the ``normal`` first ``probes`` and one of the others: in all ``outputs`` as clear a case as there is.

    With scores and maps as the first of ``outputs`` has them. Elsewhere these may be off by `_tolerance`, but a score
    by no more than its way to the threshold (or `VERIFY_TOLERANCE`, where it lies there): what rounds a verdict away is
    no device for this bundle. What this device moves it by, in its default precision, is always allowed; if that turns
    the verdict, it is told.
    """
    (stage / "golden").mkdir()
    threshold = np.float32(norm.score.threshold)
    scores = np.stack([each.scores for each in outputs])  # (precisions, probes)
    golden = []
    for label, index in (
        ("normal", int(scores[:, :normal].max(0).argmin())),
        ("anomalous", normal + int(scores[:, normal:].min(0).argmax())),
    ):
        relative = f"golden/{label}.png"
        (stage / relative).write_bytes(encode_png(probes[index]))
        means = [coarse_map(each.maps[index]) for each in outputs]
        by_precision = list(scores[:, index])
        score = float(by_precision[0])
        way = max(abs(score - norm.score.threshold), VERIFY_TOLERANCE * _span(norm.score))
        if len({value >= threshold for value in by_precision}) > 1:
            _LOGGER.warning(
                "warning: the clearest %s image of %d lies on either side of the threshold, by precision: fit the "
                "threshold on more images, or run the bundle with --precision f32",
                label,
                normal if label == "normal" else len(probes) - normal,
            )
        golden.append(
            Golden(
                label,
                file_entry(stage, relative),
                score,
                raw_map=tuple(means[0].tolist()),
                map_tolerance=_tolerance(means, norm.map),
                score_tolerance=max(_moved(by_precision), min(_tolerance(by_precision, norm.score), way)),
            )
        )
    return tuple(golden)


def _tolerance(values: Sequence[NDArray[np.float32] | np.float32], scale: Scale) -> float:
    """How far ``values[0]`` may be off on another machine, the others being of other precisions.

    At least `VERIFY_TOLERANCE` of ``scale``, and twice what the device's default precision moved them here, so that
    verification tells a broken device from a rounding one.
    """
    return max(VERIFY_TOLERANCE * _span(scale), 2 * _moved(values))


def _moved(values: Sequence[NDArray[np.float32] | np.float32]) -> float:
    """How far the others are from the first at most."""
    exact, *others = values
    return max((float(np.abs(other - exact).max()) for other in others), default=0.0)


def _span(scale: Scale) -> float:
    return scale.threshold - scale.low
