"""Benchmarks as text for a terminal, as Markdown, and a report as one HTML page too. All show the same tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_ad import page
from edge_ad.benchmarks.change import Change, doubts
from edge_ad.benchmarks.comparison import Comparison
from edge_ad.benchmarks.ratio import CONFIDENCE, Ratio
from edge_ad.benchmarks.report import BenchmarkReport
from edge_ad.benchmarks.timing import Timing

HISTOGRAM_BINS = 40


class Table(NamedTuple):
    """Rows under headers, all text."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def to_text(report: BenchmarkReport) -> str:
    """Aligned columns for a terminal."""
    return _to_text(report.definition + ".", tables(report), report.warnings)


def to_markdown(report: BenchmarkReport) -> str:
    """GitHub-flavoured Markdown."""
    return _to_markdown(
        f"Benchmark of {report.config.bundle}", report.definition + ".", tables(report), report.warnings
    )


def comparison_to_text(comparison: Comparison) -> str:
    """Aligned columns for a terminal."""
    return _to_text(_interleaved(comparison), [_comparison(comparison)], comparison.warnings)


def comparison_to_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown."""
    return _to_markdown(
        "Comparison of bundles", _interleaved(comparison), [_comparison(comparison)], comparison.warnings
    )


def changes_to_text(old: BenchmarkReport, new: BenchmarkReport, found: Sequence[Change]) -> str:
    """What changed between two reports, for a terminal."""
    rows = tuple(
        (f"{each.figure}, {each.unit}", f"{each.old:.3f}", f"{each.new:.3f}", _ratio(each.ratio)) for each in found
    )
    head = f"{new.config.bundle} against {old.config.bundle}; ratios are new over old, with {CONFIDENCE:.0%} intervals."
    return _to_text(head, [Table("Change", ("figure", "old", "new", "ratio"), rows)], doubts(old, new))


def to_html(report: BenchmarkReport) -> str:
    """One self-contained page, with a histogram of the latencies."""
    parts = [page.paragraph(report.definition + ".")]
    parts += [page.paragraph(f"Warning: {text}.") for text in report.warnings]
    for table in tables(report):
        parts += [page.heading(table.title), page.table(table.headers, table.rows)]
    counts, edges = np.histogram(report.latency.end_to_end.samples_ms, HISTOGRAM_BINS)
    labels = [f"{edge:.2f}" for edge in edges[:-1]]
    parts += [
        page.heading("Histogram of latencies"),
        page.bar_chart(labels, counts.tolist(), "runs per latency in ms (lower edge of the bin)"),
    ]
    return page.page(f"Benchmark of {report.config.bundle}", *parts)


def tables(report: BenchmarkReport) -> tuple[Table, ...]:
    """Everything but the samples, as text."""
    return (
        _latency(report),
        Table("Figures", ("figure", "value"), _figures(report)),
        Table("Ceilings", ("limit", "measured", "by"), _ceilings(report)),
        Table("Bundle", ("fact", "value"), _bundle(report)),
        Table("Environment", ("fact", "value"), _environment(report)),
    )


def _to_text(head: str, shown: Sequence[Table], warnings: Sequence[str]) -> str:
    blocks = [head, *(_text_table(table) for table in shown)]
    blocks += ["\n".join(f"warning: {text}" for text in warnings)] if warnings else []
    return "\n\n".join(blocks) + "\n"


def _to_markdown(title: str, head: str, shown: Sequence[Table], warnings: Sequence[str]) -> str:
    blocks = [f"# {title}", head]
    for table in shown:
        rules = ["---", *("---:" for _ in table.headers[1:])]
        lines = [f"| {' | '.join(cells)} |" for cells in (table.headers, rules, *table.rows)]
        blocks += [f"## {table.title}", "\n".join(lines)]
    if warnings:
        blocks += ["## Warnings", "\n".join(f"- {text}" for text in warnings)]
    return "\n\n".join(blocks) + "\n"


def _interleaved(comparison: Comparison) -> str:
    count = next(iter(comparison.timings.values())).count
    return (
        f"Batch 1, {comparison.warmup} warm-up rounds, {count} timed ones; in each round every bundle runs once, from "
        "the image in host memory to the anomaly map as a numpy array. Ratios of medians to the first bundle, with "
        f"{CONFIDENCE:.0%} intervals."
    )


def _comparison(comparison: Comparison) -> Table:
    headers = ("latency, ms", "mean", "median", "p95", "p99", "min", "max", "stdev", "runs", "ratio")
    ratios = comparison.ratios
    rows = ((name, *_timing(timing), _ratio(ratios[name])) for name, timing in comparison.timings.items())
    return Table("Latency", headers, tuple(rows))


def _ratio(ratio: Ratio | float) -> str:
    return str(ratio) if isinstance(ratio, Ratio) else f"{ratio:.3f}"


def _latency(report: BenchmarkReport) -> Table:
    latency = report.latency
    rows = [
        ("end to end", latency.end_to_end),
        ("bare sessions", latency.bare),
        ("frame to Result", latency.result),
    ]
    if report.throughput:
        rows.append((f"batch of {report.throughput.batch_size}", report.throughput.runs))
    headers = ("latency, ms", "mean", "median", "p95", "p99", "min", "max", "stdev", "runs")
    return Table("Latency", headers, tuple((name, *_timing(timing)) for name, timing in rows))


def _timing(timing: Timing) -> tuple[str, ...]:
    values = (
        timing.mean_ms,
        timing.median_ms,
        timing.p95_ms,
        timing.p99_ms,
        timing.min_ms,
        timing.max_ms,
        timing.stdev_ms,
    )
    return (*(f"{value:.3f}" for value in values), str(timing.count))


def _figures(report: BenchmarkReport) -> tuple[tuple[str, str], ...]:
    achieved, memory = report.achieved, report.memory
    throughput = "not measured"
    if report.throughput:
        throughput = f"{report.throughput.images_per_s:.2f} images/s at batch {report.throughput.batch_size}"
    return (
        ("end to end / bare sessions", f"{report.latency.bare_ratio:.3f} (medians)"),
        ("throughput", throughput),
        ("load", f"{report.load_ms:.0f} ms (engine, hashes, compilation)"),
        ("first inference", f"{report.first_inference_ms:.1f} ms"),
        ("cold start to first map", f"{report.cold_start_ms:.0f} ms (load and first inference)"),
        ("resident before load", _mib(memory.resident_before_load_bytes)),
        ("resident after load", _mib(memory.resident_loaded_bytes)),
        ("peak resident, batch 1", _mib(memory.resident_peak_bytes)),
        ("peak resident, throughput", _mib(memory.resident_peak_throughput_bytes)),
        ("device memory", _mib(memory.device_bytes)),
        ("achieved", f"{achieved.gflops_per_s:.1f} GFLOP/s"),
        ("least time by the ceilings", _bounds(report)),
        ("share of the ceiling", f"{_number(achieved.ceiling_percent, '.0f', ' %')} ({achieved.ceiling})"),
    )


def _bounds(report: BenchmarkReport) -> str:
    achieved = report.achieved
    compute, memory = _number(achieved.compute_bound_ms, ".3f", " ms"), _number(achieved.memory_bound_ms, ".3f", " ms")
    return f"compute {compute}, memory {memory}; bare sessions took {achieved.bare_ms:.3f} ms"


def _ceilings(report: BenchmarkReport) -> tuple[tuple[str, str, str], ...]:
    rows = [(each.precision, f"{each.gflops_per_s:.1f} GFLOP/s", each.source) for each in report.ceilings.compute]
    if report.ceilings.copy_gb_per_s is not None:
        rows.append(
            ("memory", f"{report.ceilings.copy_gb_per_s:.1f} GB/s", "numpy copy of a large array, read + write")
        )
    return tuple(rows)


def _bundle(report: BenchmarkReport) -> tuple[tuple[str, str], ...]:
    bundle = report.bundle
    return (
        ("name", report.config.bundle),
        ("manifest SHA-256", bundle.manifest_sha256),
        ("method", " ".join(text for text in (bundle.method, bundle.backbone) if text)),
        ("setup", bundle.setup),
        ("stored as", f"{bundle.format} {bundle.precision}"),
        ("float parts ran in", ", ".join(f"{role}: {precision}" for role, precision in report.executed.items())),
        ("parameters", f"{bundle.parameters / 1e6:.2f} M"),
        ("operations per image", f"{bundle.flops_per_image / 1e9:.2f} GFLOP (2 x MAC)"),
        ("size", _mib(bundle.size_bytes)),
        ("of which shared extractor", _mib(bundle.shared_size_bytes)),
        ("of which tile models", _mib(bundle.heads_size_bytes)),
        ("frame", report.config.frame),
    )


def _environment(report: BenchmarkReport) -> tuple[tuple[str, str], ...]:
    machine = report.environment
    threads = report.config.threads
    return (
        ("time", machine.time_utc),
        ("device", f"{machine.device} ({machine.device_name})"),
        ("driver", machine.driver or "unknown"),
        ("CPU", machine.cpu),
        ("CPU flags", " ".join(machine.cpu_flags) or "unknown"),
        ("CPUs", f"{machine.usable_cpus} usable of {machine.logical_cpus}"),
        ("CPU quota", _number(machine.cpu_quota, "g", none="none")),
        ("inference threads", "the engine's choice" if threads is None else str(threads)),
        ("memory budget", report.config.memory_budget or "none"),
        ("cache of compiled graphs", "asked for" if report.config.has_cache else "none"),
        ("governor", machine.governor or "unknown"),
        ("load average before", _number(machine.load_average, ".2f")),
        ("memory", _mib(machine.memory_bytes)),
        ("system", machine.os),
        ("Python", machine.python),
        ("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items())),
    )


def _mib(size_bytes: int | None) -> str:
    return _number(None if size_bytes is None else size_bytes / 2**20, ".1f", " MiB")


def _number(value: float | None, form: str, unit: str = "", none: str = "unknown") -> str:
    return none if value is None else f"{value:{form}}{unit}"


def _text_table(table: Table) -> str:
    """The first column to the left, numbers of wider tables to the right."""
    lines = [table.headers, *table.rows]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(table.headers))]
    align = "<" if len(table.headers) < 4 else ">"
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if column == 0 else align}{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    )
