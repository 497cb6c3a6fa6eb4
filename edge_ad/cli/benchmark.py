"""``edge-ad benchmark``: the EfficientAD timing protocol on a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edge_ad.cli.options import device_option, precision_option, signature_option, write_json
from edge_ad.runtime.session import ExecutionPrecision


@click.command("benchmark")
@click.argument("bundle", type=click.Path(path_type=Path))
@device_option
@precision_option
@signature_option
@click.option("--batch", type=int, help="Images per throughput run; 0: no throughput.  [default: 16; PatchCore 8]")
@click.option("--warmup", type=int, default=1000, show_default=True, help="Untimed runs at batch 1.")
@click.option("--iterations", type=int, default=1000, show_default=True, help="Timed runs at batch 1.")
@click.option("--throughput-iterations", type=int, help="Timed throughput runs.  [default: as --iterations]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of inference.  [default: the engine's]")
@click.option("--json", "json_path", type=click.Path(allow_dash=True), help="Write every sample here; - for stdout.")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write the tables here.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write one self-contained page here.")
@click.option("--fail-above-ms", type=float, help="Exit with 3 where the mean latency is above this.")
def command(
    bundle: Path,
    device: str,
    precision: str,
    require_signature: Path | None,
    batch: int | None,
    warmup: int,
    iterations: int,
    throughput_iterations: int | None,
    threads: int | None,
    json_path: str | None,
    markdown_path: Path | None,
    html_path: Path | None,
    fail_above_ms: float | None,
) -> None:
    """Time BUNDLE by the EfficientAD protocol.

    Batch 1: 1000 warm-up runs, then the mean of the next 1000, from the image in host memory to the anomaly map as a
    numpy array. Throughput: 1000 runs at batch 16 (8 for PatchCore). Other counts are marked as shortened.
    """
    from edge_ad import atomic
    from edge_ad.benchmarks.rendering import to_html, to_markdown, to_text
    from edge_ad.benchmarks.run import run_benchmark
    from edge_ad.errors import GateError

    report = run_benchmark(
        bundle,
        device,
        precision=ExecutionPrecision(precision),
        threads=threads,
        require_signature=require_signature,
        warmup=warmup,
        iterations=iterations,
        batch=batch,
        throughput_iterations=throughput_iterations,
        progress=_show_progress,
    )
    if json_path != "-":
        click.echo(to_text(report), nl=False)
    if json_path is not None:
        write_json(json_path, report.to_json())
    if markdown_path:
        atomic.write_text(markdown_path, to_markdown(report))
    if html_path:
        atomic.write_text(html_path, to_html(report))
    if fail_above_ms is not None and report.latency_ms > fail_above_ms:
        raise GateError(f"mean latency {report.latency_ms:.3f} ms is above --fail-above-ms {fail_above_ms:g}")


def _show_progress(done: int, total: int, what: str) -> None:
    """One line on a terminal, rewritten at every per cent: plain, since edge boxes have no rich."""
    if sys.stderr.isatty() and done * 100 // total != (done - 1) * 100 // total:
        click.echo(f"\r{what}: {done}/{total}", err=True, nl=done == total)
