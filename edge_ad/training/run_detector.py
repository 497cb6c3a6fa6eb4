"""A run behind the runtime's `Detector`: torch sessions in place of an engine's, everything else the same code."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from edge_ad.bundle.manifest import (
    SCHEMA_VERSION,
    Format,
    InputSpec,
    Manifest,
    Merge,
    Method,
    Normalisation,
    NormalisationStage,
    Precision,
    Provenance,
    Scale,
)
from edge_ad.errors import InputError
from edge_ad.methods import method_class
from edge_ad.methods.tile_model import TileModel
from edge_ad.runtime.detector import Detector
from edge_ad.tiling import SEAM_BAND, SEAM_SIGMA_PX
from edge_ad.training.extractor import extractor_model
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.torch_graph import head_graph, shared_graph

RAW = Normalisation(NormalisationStage.NONE, "none", Scale(0.0, 1.0), Scale(0.0, 1.0), (), ())
_PACKAGES = ("edge-ad", "torch", "timm", "openvino", "nncf", "onnx", "onnxruntime", "numpy", "opencv-python-headless")


def run_detector(
    run: RunFolder, model: TileModel | None = None, *, normalisation: Normalisation | None = None, batch_size: int = 1
) -> Detector:
    """A detector that runs the trained torch model in float32, on the model's device.

    Args:
        run: all its heads must be there.
        model: the run's method, where it is built already or is to run elsewhere than on the CPU.
        normalisation: `RAW` where None, so that thresholds can be fitted with it.
        batch_size: images per call of `Detector.raw`.
    """
    model = model or run.model()
    setup, tile_features = run.settings.setup, shared_graph(model)
    shared = shared_graph(extractor_model(model, setup))
    heads = [run.head(model, location).to(model.device) for location in setup.model_locations]
    sessions = [head_graph(model, head, tile_features).session() for head in heads]
    manifest = run_manifest(run, normalisation or RAW)
    return Detector(manifest, shared.session(), sessions, batch_size=batch_size, roi=run.roi())


def run_manifest(run: RunFolder, normalisation: Normalisation) -> Manifest:
    """The part of a bundle's manifest that a run decides; graphs, golden images and parity are the exporter's."""
    settings = run.settings
    files = settings.data.pixel_format
    return Manifest(
        schema_version=SCHEMA_VERSION,
        format=Format.OPENVINO,
        precision=Precision.FP32,
        method=Method(settings.method, str(settings.config.get("backbone", "")), settings.config),
        setup=settings.setup,
        input=InputSpec(
            color="rgb",
            resize="area",
            bits=files.bits,
            alpha=str(files.alpha),
            proportions=settings.data.proportions,
        ),
        merge=Merge(settings.score_merge, SEAM_SIGMA_PX, SEAM_BAND),
        normalisation=normalisation,
        graphs=(),
        golden=(),
        parity=(),
        parity_tolerance=0.0,
        feature_axes=method_class(settings.method).feature_axes,
        provenance=Provenance(
            created_utc=_now().isoformat(timespec="seconds"),
            versions=_versions(),
            seed=settings.seed,
            data_digest=settings.data.digest,
            training_images=len(settings.data.training),
            weights=settings.weights,
        ),
    )


def _now() -> datetime:
    """The time, or SOURCE_DATE_EPOCH (reproducible-builds.org): two exports of a run are then the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, but got {epoch!r}") from error


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
