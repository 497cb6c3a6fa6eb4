"""``edge-ad experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_ad.experiment.record import Record


@click.command("experiment")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder; continued if begun.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Cells at a time, each on CPUs of its own."
)
@click.option("--keep", is_flag=True, help="Keep run folders and bundles below DIR/runs.")
@click.option("--recompute", is_flag=True, help="Compute again what was made with other settings.")
@click.option("--tables-only", is_flag=True, help="Only write the tables of what is there.")
@click.option("--print", "print_only", is_flag=True, help="Only list the cells: done, or how many lines each lacks.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    config: Path,
    output: Path,
    jobs: int,
    keep: bool,
    recompute: bool,
    tables_only: bool,
    print_only: bool,
) -> None:
    """Run a grid of data sets, methods, setups and seeds, and set it in tables.

    CONFIG is a TOML file, whose keys docs/experiment.md lists. Every cell is trained once and measured as trained and
    in every precision. Results are appended to results.jsonl as they come: run the same command again to continue, or
    with a longer list to add cells. A cell that fails is noted, tried again next time, and the exit code is 1.
    """
    from edge_ad.errors import EdgeAdError
    from edge_ad.experiment.config import read_config
    from edge_ad.experiment.grid import cells
    from edge_ad.experiment.report import write_report
    from edge_ad.experiment.runner import make_plan, run_jobs
    from edge_ad.progress import terminal_progress

    experiment = read_config(config)
    plan = make_plan(experiment, output, recompute=recompute)
    missing = sum(len(job.todo) for job in plan.jobs)
    if print_only:
        todo = {str(job.cell): len(job.todo) for job in plan.jobs}
        every = list(cells(experiment))
        for cell in every:
            lacks = todo.get(str(cell))
            click.echo(f"{cell}: {f'{lacks} of {len(cell.identities)} lines missing' if lacks else 'done'}")
        click.echo(f"{missing} of {plan.lines} lines missing, in {len(todo)} of {len(every)} cells")
        return
    done = 0

    def told(record: Record) -> None:
        nonlocal done
        done += 1
        if not obj["quiet"]:
            what = f"{record.failure.error}: {record.failure.message}" if record.failure else _figures(record)
            click.echo(f"[{done}/{missing}] {record.identity}: {what}", err=True)

    try:
        if not tables_only:
            with terminal_progress(not obj["quiet"]) as progress:
                run_jobs(plan.jobs, output, processes=jobs, keep=keep, told=told, progress=progress)
    finally:
        records = make_plan(experiment, output, recompute=recompute).records
        if records:
            write_report(output, records, f"Experiment {config.stem}", plan.lines)
    failed = sum(record.failure is not None for record in records)
    click.echo(f"{output}: {len(records) - failed} of {plan.lines} lines, tables in results.md, .csv and .html")
    if failed:
        raise EdgeAdError(f"{failed} of {plan.lines} lines failed, listed in {output / 'results.md'}")


def _figures(record: Record) -> str:
    outcome = record.outcome
    assert outcome is not None
    pixel = f", AUPRO {outcome.pixel.aupro:.4f}" if outcome.pixel else ""
    pixel += f", AU-sPRO {outcome.spro.auspro:.4f}" if outcome.spro else ""
    return f"AUROC {outcome.image.auroc:.4f}{pixel}, {outcome.evaluation_ms:.1f} ms"
