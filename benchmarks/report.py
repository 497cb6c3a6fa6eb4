"""What a benchmark found: every sample, every condition, and the figures drawn from them. JSON there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_ad.benchmarks.ceilings import Achieved, Ceilings
from edge_ad.benchmarks.environment import Environment
from edge_ad.benchmarks.memory import Memory
from edge_ad.benchmarks.protocol import Latency, Protocol, Schedule, Throughput
from edge_ad.bundle.manifest import Manifest
from edge_ad.errors import InputError
from edge_ad.records import from_plain, to_plain
from edge_ad.runtime.detector import Detector

SCHEMA_VERSION = 3
READABLE = (2, SCHEMA_VERSION)  # 2: without `Config.has_cache`


@dataclass(frozen=True)
class Config:
    """What was asked for."""

    bundle: str  # name of its folder
    device: str
    precision: str
    threads: int | None  # None: the engine's choice
    schedule: Schedule
    frame: str  # which image was fed, in words
    memory_budget: str | None = None  # as asked for; None: everything stays loaded
    has_cache: bool = False  # a folder was named for graphs that the engine has compiled


@dataclass(frozen=True)
class BundleFacts:
    """The bundle as far as its cost goes."""

    manifest_sha256: str
    method: str
    backbone: str
    setup: str
    format: str
    precision: str  # of storage
    tiles: int
    models: int
    parameters: int  # of all graphs
    flops_per_image: int  # 2 x MAC, all tiles
    size_bytes: int  # all files
    shared_size_bytes: int  # the extractor's graph
    heads_size_bytes: int  # all tile models' graphs


@dataclass(frozen=True)
class BenchmarkReport:
    """One benchmark of one bundle on one device. `to_json` and `from_json` are exact inverses."""

    schema_version: int
    protocol: Protocol
    config: Config
    environment: Environment
    bundle: BundleFacts
    executed: dict[str, str]  # graph role to the precision its float parts ran in
    load_ms: float  # importing the engine, reading and hashing the bundle, compiling
    first_inference_ms: float  # end to end, right after loading
    latency: Latency
    throughput: Throughput | None
    memory: Memory
    ceilings: Ceilings
    achieved: Achieved

    @property
    def latency_ms(self) -> float:
        """The protocol's figure: mean time from image to anomaly map at batch 1."""
        return self.latency.end_to_end.mean_ms

    @property
    def cold_start_ms(self) -> float:
        """From no engine in the process to the first map."""
        return self.load_ms + self.first_inference_ms

    @property
    def definition(self) -> str:
        """What was measured, in one sentence."""
        schedule = self.config.schedule
        shortened = "" if self.protocol is Protocol.EFFICIENTAD else "Shortened "
        tiles = f"tiling, {self.bundle.tiles} tiles, merging, seams" if self.bundle.tiles > 1 else "one tile"
        return (
            f"{shortened}EfficientAD protocol: batch 1, {schedule.warmup} warm-up runs, mean of the next "
            f"{schedule.iterations}; the clock runs from the image in host memory to the anomaly map as a numpy array "
            f"({tiles})"
        )

    @property
    def summary(self) -> dict[str, float | None]:
        """The figures, each with its unit in its name."""
        timing = self.latency.end_to_end
        return {
            "latency_mean_ms": timing.mean_ms,
            "latency_median_ms": timing.median_ms,
            "latency_p95_ms": timing.p95_ms,
            "latency_p99_ms": timing.p99_ms,
            "latency_min_ms": timing.min_ms,
            "latency_max_ms": timing.max_ms,
            "latency_stdev_ms": timing.stdev_ms,
            "cold_start_ms": self.cold_start_ms,
            "result_mean_ms": self.latency.result.mean_ms,
            "bare_median_ms": self.latency.bare.median_ms,
            "bare_ratio": self.latency.bare_ratio,
            "throughput_images_per_s": self.throughput.images_per_s if self.throughput else None,
            "ceiling_percent": self.achieved.ceiling_percent,
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the numbers, or not to compare them; empty where there is none."""
        found = list(self.environment.warnings())
        if self.protocol is Protocol.SHORTENED:
            found.append("not the published protocol: do not compare these figures with published ones")
        runs = {"latency": self.latency.end_to_end, "bare sessions": self.latency.bare}
        if self.throughput:
            runs["throughput"] = self.throughput.runs
        return (*found, *(f"{name}: {text}" for name, timing in runs.items() for text in timing.warnings()))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, with ``summary``, ``definition`` and ``warnings`` drawn from the samples."""
        plain: dict[str, Any] = to_plain(self)
        derived = {"summary": self.summary, "definition": self.definition, "warnings": list(self.warnings)}
        return {**plain, **derived}

    @classmethod
    def from_json(cls, value: Any) -> BenchmarkReport:
        """The inverse of `to_json`; what is drawn from the samples is drawn again.

        Raises:
            InputError: another schema_version, or a field that is missing, unknown or of the wrong type.
        """
        if not isinstance(value, dict) or value.get("schema_version") not in READABLE:
            readable = " or ".join(map(str, sorted(READABLE)))
            raise InputError(f"benchmark report: expected an object with schema_version {readable}")
        stored = {key: item for key, item in value.items() if key not in ("summary", "definition", "warnings")}
        report: BenchmarkReport = from_plain(cls, stored, "benchmark report")
        return report


def float_parts(detector: Detector) -> dict[str, str]:
    """What the float parts of extractor and heads run in, as the engine reports it."""
    shared = {"shared": detector.shared.precision} if detector.shared else {}
    heads = dict.fromkeys(head.precision for head in detector.heads.values())
    return {**shared, "heads": " and ".join(heads)}


def in_words(facts: Mapping[str, str]) -> str:
    """Facts in one line, such as versions or what `float_parts` found."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def bundle_facts(manifest: Manifest, manifest_sha256: str, manifest_size_bytes: int) -> BundleFacts:
    """The facts of a bundle from its manifest."""
    return BundleFacts(
        manifest_sha256=manifest_sha256,
        method=manifest.method.name,
        backbone=manifest.method.backbone,
        setup=str(manifest.setup),
        format=str(manifest.format),
        precision=str(manifest.precision),
        tiles=len(manifest.setup.grid),
        models=len(manifest.heads),
        parameters=manifest.parameters,
        flops_per_image=manifest.flops_per_image,
        size_bytes=manifest_size_bytes + manifest.size_bytes,
        shared_size_bytes=manifest.shared.size_bytes if manifest.shared else 0,
        heads_size_bytes=sum(head.size_bytes for head in manifest.heads),
    )
