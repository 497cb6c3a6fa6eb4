"""``edge-ad doctor``."""

from __future__ import annotations

import click

from edge_ad.cli.options import json_option, write_json, write_table
from edge_ad.doctor import Status, run_checks
from edge_ad.errors import EdgeAdError
from edge_ad.records import to_plain


@click.command("doctor")
@json_option
def command(json_target: str | None) -> None:
    """Check this installation.

    A warning means that something is not there which not everybody needs. Exit code 1 where a check fails.
    """
    checks = list(run_checks())
    if json_target is not None:
        write_json(json_target, to_plain(checks))
    if json_target != "-":
        write_table([(c.status, c.name, f"{c.found}; {c.remedy}" if c.remedy else c.found) for c in checks])
    failed = [check.name for check in checks if check.status is Status.FAIL]
    if failed:
        raise EdgeAdError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
