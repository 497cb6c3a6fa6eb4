"""Bundles against each other: loaded together, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import edge_ad
from edge_ad.benchmarks import environment
from edge_ad.benchmarks.environment import Environment
from edge_ad.benchmarks.frame import benchmark_frame
from edge_ad.benchmarks.ratio import Ratio, ratio_of_medians
from edge_ad.benchmarks.report import float_parts, in_words
from edge_ad.benchmarks.timing import Timing, check_counts, time_interleaved
from edge_ad.bundle.files import MANIFEST_NAME, sha256_file
from edge_ad.errors import InputError
from edge_ad.progress import Progress, no_progress, per_round
from edge_ad.records import to_plain
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.session import ExecutionPrecision

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Comparison:
    """Latencies at batch 1 of several bundles, from the image in host memory to the anomaly map, interleaved.

    Attributes:
        precision, threads, memory_budget: as asked for; None: the engine's choice, and everything stays loaded.
        warmup: untimed rounds before.
        timings: by bundle.
        manifests: SHA-256 of their manifests.
        executed: what their float parts ran in.
    """

    schema_version: int
    environment: Environment
    precision: str
    threads: int | None
    warmup: int
    timings: Mapping[str, Timing]
    manifests: Mapping[str, str]
    executed: Mapping[str, Mapping[str, str]]
    memory_budget: str | None = None

    @property
    def ratios(self) -> dict[str, Ratio]:
        """Of every bundle's median to the first one's."""
        first = next(iter(self.timings.values()))
        return {name: ratio_of_medians(timing, first, interleaved=True) for name, timing in self.timings.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the figures."""
        of_timings = (f"{name}: {text}" for name, timing in self.timings.items() for text in timing.warnings())
        told = {name: in_words(each) for name, each in self.executed.items()}
        unlike = "; ".join(f"{name}: {text}" for name, text in told.items()) if len(set(told.values())) > 1 else ""
        return (
            *self.environment.warnings(),
            *([f"float parts ran in other precisions: {unlike}"] * bool(unlike)),
            *of_timings,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, with what is drawn from the samples."""
        derived = {"ratios": to_plain(self.ratios), "warnings": list(self.warnings)}
        plain: dict[str, Any] = to_plain(self)
        return plain | derived


def run_comparison(
    bundles: Sequence[Path],
    device: str = "CPU",
    *,
    precision: ExecutionPrecision = ExecutionPrecision.AUTO,
    threads: int | None = None,
    require_signature: Path | None = None,
    memory_budget: str | None = None,
    cache_dir: Path | None = None,
    warmup: int,
    iterations: int,
    progress: Progress = no_progress,
) -> Comparison:
    """Time ``bundles`` in turn, ``iterations`` times. All are loaded at once.

    Args:
        bundles: folders; each is called by its name, or by its path as given where two have the same name.
        device, precision, threads, require_signature, memory_budget, cache_dir: see `edge_ad.load`; the budget is
            each bundle's.

    Raises:
        InputError: no run would be timed, or a bundle twice.
        The errors of `edge_ad.load`, and `InferenceError`.
    """
    check_counts(warmup, iterations)
    names = [path.resolve().name for path in bundles]
    if len(set(names)) < len(names):
        names = [str(path) for path in bundles]
    where = [path.resolve() for path in bundles]
    if twice := {str(path) for path in where if where.count(path) > 1}:
        raise InputError(f"{min(twice)} is there twice; name each bundle once")
    load_average = environment.load_average()
    with ExitStack() as opened:
        detectors: list[Detector] = [
            opened.enter_context(
                edge_ad.load(
                    path,
                    device,
                    precision=precision,
                    threads=threads,
                    require_signature=require_signature,
                    memory_budget=memory_budget,
                    cache_dir=cache_dir,
                )
            )
            for path in bundles
        ]
        calls: dict[str, Callable[[], object]] = {}
        for name, path, detector in zip(names, bundles, detectors, strict=True):
            image, _ = benchmark_frame(path, detector.manifest)
            calls[name] = partial(detector.raw, image[None])
        timings = time_interleaved(calls, warmup, iterations, per_round(progress, warmup + iterations, "latency"))
        return Comparison(
            SCHEMA_VERSION,
            environment.read_environment(detectors[0].device, load_average),
            str(precision),
            threads,
            warmup,
            timings,
            {name: sha256_file(path / MANIFEST_NAME) for name, path in zip(names, bundles, strict=True)},
            {name: float_parts(detector) for name, detector in zip(names, detectors, strict=True)},
            memory_budget,
        )
