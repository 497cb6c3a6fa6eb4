"""``edge-ad benchmark``: the EfficientAD timing protocol on a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edge_ad.cli.options import (
    AmountType,
    cache_dir_option,
    check_targets,
    device_option,
    memory_option,
    precision_option,
    signature_option,
    threads_option,
    write_json,
)
from edge_ad.progress import no_progress, plain_progress
from edge_ad.runtime.session import ExecutionPrecision

Timed = TypeVar("Timed")


@click.command("benchmark")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@device_option
@precision_option
@signature_option
@click.option("--batch", type=int, help="Images per throughput run; 0: no throughput.  [default: 16; PatchCore 8]")
@click.option("--warmup", type=int, default=1000, show_default=True, help="Untimed runs at batch 1.")
@click.option("--iterations", type=int, default=1000, show_default=True, help="Timed runs at batch 1.")
@click.option("--throughput-iterations", type=int, help="Timed throughput runs.  [default: as --iterations]")
@threads_option
@memory_option
@cache_dir_option
@click.option("--json", "json_path", type=click.Path(allow_dash=True), help="Write every sample here; - for stdout.")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write the tables here.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write one self-contained page here.")
@click.option("--fail-above-ms", type=AmountType(), help="Exit with 3 where the mean latency is above this.")
@click.pass_obj
def command(
    obj: dict[str, Any],
    bundles: tuple[Path, ...],
    device: str,
    precision: str,
    require_signature: Path | None,
    batch: int | None,
    warmup: int,
    iterations: int,
    throughput_iterations: int | None,
    threads: int | None,
    memory_budget: str | None,
    cache_dir: Path | None,
    json_path: str | None,
    markdown_path: Path | None,
    html_path: Path | None,
    fail_above_ms: float | None,
) -> None:
    """Time bundles by the EfficientAD protocol.

    Batch 1: 1000 warm-up runs, then the mean of the next 1000, from the image in host memory to the anomaly map as a
    numpy array. Throughput: 1000 runs at batch 16 (8 for PatchCore). That takes thousands of times the latency; for a
    quick look, --warmup 20 --iterations 100 --batch 0. Other counts are marked as shortened.

    Of several bundles the latencies alone are measured, in turn, and their ratios to the first one's.
    """
    from edge_ad import atomic
    from edge_ad.benchmarks import rendering
    from edge_ad.benchmarks.comparison import run_comparison
    from edge_ad.benchmarks.run import run_benchmark
    from edge_ad.errors import GateError, InputError

    check_targets(json_path, markdown_path, html_path)
    show_progress = no_progress if obj["quiet"] else plain_progress()

    def timed(run: Callable[..., Timed], what: object, **options: object) -> Timed:
        return run(
            what,
            device,
            precision=ExecutionPrecision(precision),
            threads=threads,
            require_signature=require_signature,
            memory_budget=memory_budget,
            cache_dir=cache_dir,
            warmup=warmup,
            iterations=iterations,
            progress=show_progress,
            **options,
        )

    if len(bundles) > 1:
        of_one = {
            "--batch": batch,
            "--throughput-iterations": throughput_iterations,
            "--html": html_path,
            "--fail-above-ms": fail_above_ms,
        }
        if given := [name for name, value in of_one.items() if value is not None]:
            raise InputError(f"{given[0]}: goes with one bundle, but {len(bundles)} are given")
        comparison = timed(run_comparison, bundles)
        _write(
            comparison.to_json(),
            rendering.comparison_to_text(comparison),
            rendering.comparison_to_markdown(comparison),
            json_path,
            markdown_path,
        )
        return
    if batch == 0 and throughput_iterations is not None:
        raise InputError("--throughput-iterations: no throughput is measured with --batch 0; leave one of them out")
    report = timed(run_benchmark, bundles[0], batch=batch, throughput_iterations=throughput_iterations)
    _write(report.to_json(), rendering.to_text(report), rendering.to_markdown(report), json_path, markdown_path)
    if html_path:
        atomic.write_text(html_path, rendering.to_html(report))
    if fail_above_ms is not None and report.latency_ms > fail_above_ms:
        raise GateError(f"mean latency {report.latency_ms:.3f} ms is above --fail-above-ms {fail_above_ms:g}")


def _write(value: Any, text: str, markdown: str, json_path: str | None, markdown_path: Path | None) -> None:
    from edge_ad import atomic

    if json_path != "-":
        click.echo(text, nl=False)
    if json_path is not None:
        write_json(json_path, value)
    if markdown_path:
        atomic.write_text(markdown_path, markdown)
