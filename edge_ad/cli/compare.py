"""``edge-ad compare``: two reports of ``edge-ad benchmark``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_ad.cli.options import AmountType, json_option, write_json

if TYPE_CHECKING:
    from edge_ad.benchmarks.report import BenchmarkReport


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@json_option
@click.option(
    "--fail-above",
    type=AmountType(),
    help="Exit with 3 where the whole interval of the latency is above this multiple of OLD's.",
)
@click.option("--anyway", is_flag=True, help="Judge by --fail-above also what is not comparable.")
def command(old: Path, new: Path, json_target: str | None, fail_above: float | None, anyway: bool) -> None:
    """Tell what changed between two benchmarks.

    OLD and NEW are files of ``edge-ad benchmark --json`` on one bundle. Ratios are new over old; those of latencies
    have 95 % intervals, by resampling. What makes the two hard to compare is said below: another machine, other
    packages, runs that warned of themselves. Where CPU, device, method, setup or execution precision differ,
    --fail-above exits with 2.
    """
    from edge_ad.benchmarks.change import changes, doubts, incomparable
    from edge_ad.benchmarks.ratio import ratio_of_medians
    from edge_ad.benchmarks.rendering import changes_to_text
    from edge_ad.errors import GateError, InputError
    from edge_ad.records import to_plain

    before, after = _read(old), _read(new)
    found = changes(before, after)
    if json_target is not None:
        write_json(json_target, {"changes": to_plain(found), "warnings": list(doubts(before, after))})
    if json_target != "-":
        click.echo(changes_to_text(before, after, found), nl=False)
    if fail_above is None:
        return
    if not anyway and (reasons := incomparable(before, after)):
        raise InputError(f"--fail-above: not comparable: {'; '.join(reasons)}; benchmark both alike, or judge --anyway")
    latency = ratio_of_medians(after.latency.end_to_end, before.latency.end_to_end, interleaved=False)
    if latency.low > fail_above:
        raise GateError(f"the median latency is {latency} times that of {old}, above --fail-above {fail_above:g}")


def _read(path: Path) -> BenchmarkReport:
    from edge_ad.benchmarks.report import BenchmarkReport
    from edge_ad.errors import InputError

    try:
        return BenchmarkReport.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:  # of JSON, or of what is no report
        raise InputError(f"{path}: {error}; expected a file of edge-ad benchmark --json on one bundle") from error
