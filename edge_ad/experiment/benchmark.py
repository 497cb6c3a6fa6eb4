"""The benchmark of a bundle in a process of its own: its memory is not that of torch and training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edge_ad.benchmarks.report import BenchmarkReport
from edge_ad.errors import EdgeAdError
from edge_ad.experiment.config import BenchmarkEntry
from edge_ad.experiment.record import Benchmark
from edge_ad.runtime.session import ExecutionPrecision

_COMMAND = "from edge_ad.cli import main; main()"


def run_benchmark_process(bundle: Path, entry: BenchmarkEntry, device: str, execution: ExecutionPrecision) -> Benchmark:
    """Figures of ``edge-ad benchmark`` on ``bundle``. Raises `EdgeAdError` with what the process said."""
    options: dict[str, object] = {
        "--device": device,
        "--precision": execution,
        "--warmup": entry.warmup,
        "--iterations": entry.iterations,
        "--batch": entry.batch,
        "--throughput-iterations": entry.throughput_iterations,
    }
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    command = [sys.executable, "-c", _COMMAND, "benchmark", str(bundle), "--json", "-", *given]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        said = (process.stderr.strip().splitlines() or ["nothing"])[-1]
        raise EdgeAdError(f"the benchmark ended with exit code {process.returncode} and said: {said}")
    return figures(BenchmarkReport.from_json(json.loads(process.stdout)))


def figures(report: BenchmarkReport) -> Benchmark:
    """The figures that tables show."""
    schedule = report.config.schedule
    return Benchmark(
        protocol=str(report.protocol),
        warmup=schedule.warmup,
        iterations=schedule.iterations,
        latency_mean_ms=report.latency_ms,
        latency_median_ms=report.latency.end_to_end.median_ms,
        bare_ratio=report.latency.bare_ratio,
        throughput_images_per_s=report.throughput.images_per_s if report.throughput else None,
        throughput_batch=schedule.throughput_batch,
        resident_peak_bytes=report.memory.resident_peak_bytes,
        load_ms=report.load_ms,
        cpu=report.environment.cpu,
        warnings=report.warnings,
    )
