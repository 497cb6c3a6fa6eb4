"""One line of an experiment's results: what was measured, with which settings, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edge_ad.bundle.manifest import Parity, ScoreMerge
from edge_ad.evaluation.image_metrics import ImageMetrics
from edge_ad.evaluation.pixel_metrics import PixelMetrics
from edge_ad.evaluation.spro import SproMetrics
from edge_ad.experiment.config import Variant
from edge_ad.tiling import Size

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Identity:
    """What a line is about; at most one line counts per identity."""

    dataset: str
    category: str
    method: str
    backbone: str
    setup: str
    seed: int
    precision: Variant
    score_merge: ScoreMerge

    def __str__(self) -> str:
        return (
            f"{self.dataset}/{self.category} {self.method} {self.backbone} {self.setup} seed {self.seed} "
            f"{self.precision} {self.score_merge}"
        )


@dataclass(frozen=True)
class ImageScore:
    """One test image.

    Attributes:
        path: relative to the data set's root.
        label: 1 for anomalous.
        defect: its kind.
        score: raw.
        defect_area: fraction of the image inside its masks; None where it has none.
    """

    path: str
    label: int
    defect: str
    score: float
    defect_area: float | None


@dataclass(frozen=True)
class Benchmark:
    """Figures of `edge_ad.benchmarks`, run in a process of its own that never loads torch."""

    protocol: str
    warmup: int
    iterations: int
    latency_mean_ms: float
    latency_median_ms: float
    bare_ratio: float
    throughput_images_per_s: float | None
    throughput_batch: int
    resident_peak_bytes: int | None  # until the end of the latency runs
    load_ms: float
    cpu: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        image, auroc_by_defect: image level, by scores of the line's merge.
        pixel, lost_masks, metrics_size: pixel level; None where there are no masks. Lost are regions that vanish at
            that size; in lines of before, images all of whose regions do.
        aupro_by_defect: AUPRO of each kind of defect; None where there are no masks, and in lines of schema 1.
        spro: of regions that need not be found whole; None where the data set has none, and in lines of schema 1.
        images: every test image.
        kept_step: step of training whose state was kept, mean over tile models; None without steps, and in older lines.
        training_s: seconds of fitting heads and thresholds, images decoded before; None where it was interrupted.
        training_images, held_out_images, data_digest, weights: what was trained on.
        parameters: numbers stored in extractor and heads.
        size_bytes: of the bundle; None for torch.
        graphs: number of graphs by storage precision; empty for torch.
        parity: exported graphs against the trained model; empty for torch.
        executed: device and precision of the float parts, as the engine reports them.
        evaluation_ms: median time of scoring one test image.
        benchmark: None where none was asked for.
        versions, time_utc: of the packages, and when the line was written.
    """

    image: ImageMetrics
    auroc_by_defect: dict[str, float]
    pixel: PixelMetrics | None
    lost_masks: int | None
    metrics_size: Size | None
    aupro_by_defect: dict[str, float] | None
    spro: SproMetrics | None
    images: tuple[ImageScore, ...]
    training_s: float | None
    training_images: int
    held_out_images: int
    data_digest: str
    weights: str
    parameters: int
    size_bytes: int | None
    graphs: dict[str, int]
    parity: tuple[Parity, ...]
    executed: str
    evaluation_ms: float
    benchmark: Benchmark | None
    versions: dict[str, str]
    kept_step: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why there is no outcome: the class of the error and its message."""

    error: str
    message: str


@dataclass(frozen=True)
class Record:
    """A line: either an outcome or a failure.

    Attributes:
        settings: everything beside the identity that decides the outcome; lines of other settings are never mixed.
    """

    schema_version: int
    identity: Identity
    settings: dict[str, Any]
    time_utc: str
    outcome: Outcome | None
    failure: Failure | None


def upgraded(line: dict[str, Any]) -> dict[str, Any]:
    """A line of schema 1 as one of this schema: what was not measured then is None. Others as they are."""
    if line.get("schema_version") != 1:
        return line
    outcome = line.get("outcome")
    if isinstance(outcome, dict):
        outcome = {"aupro_by_defect": None, "spro": None, **outcome}
    return {**line, "schema_version": SCHEMA_VERSION, **({"outcome": outcome} if "outcome" in line else {})}


def make_record(identity: Identity, settings: dict[str, Any], result: Outcome | BaseException) -> Record:
    """A line written now."""
    outcome, failure = (
        (result, None)
        if isinstance(result, Outcome)
        else (None, Failure(type(result).__name__, " ".join(str(result).split())))
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(SCHEMA_VERSION, identity, settings, now, outcome, failure)
