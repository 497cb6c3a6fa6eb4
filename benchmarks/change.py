"""A benchmark report against an earlier one: what changed, how sure that is, and why they may not be comparable."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edge_ad.benchmarks.ratio import Ratio, ratio_of_medians
from edge_ad.benchmarks.report import BenchmarkReport, in_words

DECISIVE = frozenset({"CPU", "device", "method", "setup", "execution precision"})


@dataclass(frozen=True)
class Change:
    """One figure of two reports; ``ratio`` is new over old, with an interval where it is one of medians."""

    figure: str
    unit: str
    old: float
    new: float
    ratio: Ratio | float


def changes(old: BenchmarkReport, new: BenchmarkReport) -> list[Change]:
    """What both reports hold, latencies first."""
    found = []
    for figure, before, after in (
        ("end to end, median", old.latency.end_to_end, new.latency.end_to_end),
        ("bare sessions, median", old.latency.bare, new.latency.bare),
        ("frame to Result, median", old.latency.result, new.latency.result),
    ):
        ratio = ratio_of_medians(after, before, interleaved=False)
        found.append(Change(figure, "ms", before.median_ms, after.median_ms, ratio))
    if old.throughput and new.throughput and old.throughput.batch_size == new.throughput.batch_size:
        rates = old.throughput.images_per_s, new.throughput.images_per_s
        found.append(Change(f"throughput, batch {new.throughput.batch_size}", "images/s", *rates, rates[1] / rates[0]))
    for figure, unit, was, now in (
        ("load", "ms", old.load_ms, new.load_ms),
        ("first inference", "ms", old.first_inference_ms, new.first_inference_ms),
        ("peak resident, batch 1", "MiB", _mib(old.memory.resident_peak_bytes), _mib(new.memory.resident_peak_bytes)),
        ("bundle", "MiB", _mib(old.bundle.size_bytes), _mib(new.bundle.size_bytes)),
    ):
        if was and now:
            found.append(Change(figure, unit, was, now, now / was))
    return found


def doubts(old: BenchmarkReport, new: BenchmarkReport) -> tuple[str, ...]:
    """Why the two may not be comparable: they differ in what should be alike, or warn themselves."""
    return (
        *_differences(old, new),
        *(f"old: {text}" for text in old.warnings),
        *(f"new: {text}" for text in new.warnings),
    )


def incomparable(old: BenchmarkReport, new: BenchmarkReport) -> tuple[str, ...]:
    """Differences by which a ratio of the two tells of something else than a change: see `DECISIVE`."""
    return tuple(_differences(old, new, DECISIVE))


def _differences(old: BenchmarkReport, new: BenchmarkReport, of: Collection[str] | None = None) -> Iterator[str]:
    """In words; of those circumstances, or of all."""
    before, after = _circumstances(old), _circumstances(new)
    for what, was in before.items():
        if was != after[what] and (of is None or what in of):
            yield f"{what}: {_told(was)} before, {_told(after[what])} now"


def _circumstances(report: BenchmarkReport) -> dict[str, object]:
    machine, config, schedule = report.environment, report.config, report.config.schedule
    return {
        "CPU": machine.cpu,
        "usable CPUs": machine.usable_cpus,
        "quota of CPUs": machine.cpu_quota,
        "governor": machine.governor,
        "device": machine.device_name,
        "driver": machine.driver,
        "system": machine.os,
        "Python": machine.python,
        "threads asked for": config.threads,
        "memory budget": config.memory_budget,
        "cache of compiled graphs": config.has_cache,
        "frame": config.frame,
        "warm-up runs": schedule.warmup,
        "timed runs": schedule.iterations,
        "throughput batch": schedule.throughput_batch,
        "execution precision": report.executed,
        "engine and package versions": machine.versions,
        "method": report.bundle.method,
        "setup": report.bundle.setup,
        "bundle": report.bundle.manifest_sha256,
    }


def _told(value: object) -> str:
    return in_words(value) if isinstance(value, dict) else str(value)


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 2**20
