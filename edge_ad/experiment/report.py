"""An experiment's tables and figures as Markdown, CSV and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_ad import atomic, page
from edge_ad.experiment.plots import plots
from edge_ad.experiment.record import Record
from edge_ad.experiment.tables import Table, tables, to_csv


def write_report(folder: Path, records: Sequence[Record], title: str, lines: int) -> None:
    """Write ``results.md``, ``results.csv``, ``results.html`` and the figures' PNG files into ``folder``.

    Args:
        records: lines that are there, failures too.
        lines: number of lines of the whole experiment.

    Raises:
        OutputWriteError: a file could not be written.
    """
    found = tables(records)
    figures = plots(records)
    state, failed = _state(records, lines), _failures(records)
    atomic.write_text(folder / "results.csv", to_csv(records))
    for name, (image, _) in figures.items():
        atomic.write_bytes(folder / f"{name}.png", image)
    text = [f"# {title}", state, *(markdown(table) for table in (*found, *failed))]
    text += [f"![{caption}]({name}.png)" for name, (_, caption) in figures.items()]
    atomic.write_text(folder / "results.md", "\n\n".join(text) + "\n")
    parts = [page.paragraph(state)]
    for table in (*found, *failed):
        parts += [page.heading(table.title), page.table(table.headers, table.rows, table.note)]
    parts += [page.figure(image, caption) for image, caption in figures.values()]
    atomic.write_text(folder / "results.html", page.page(title, *parts))


def markdown(table: Table) -> str:
    """A section with a GitHub-flavoured table; its note below."""
    texts = [index for index in range(len(table.headers)) if any(not _is_figure(row[index]) for row in table.rows)]
    rules = ["---" if index in texts else "---:" for index in range(len(table.headers))]
    rows = ([cell.replace("|", "\\|") for cell in cells] for cells in (table.headers, rules, *table.rows))
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n\n".join([f"## {table.title}", "\n".join(lines), *([table.note] if table.note else [])])


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-"


def _state(records: Sequence[Record], lines: int) -> str:
    measured = sum(record.outcome is not None for record in records)
    failed = sum(record.failure is not None for record in records)
    missing = lines - len(records)
    return f"{measured} of {lines} results measured, {failed} failed, {missing} still to be computed."


def _failures(records: Sequence[Record]) -> list[Table]:
    rows = tuple(
        (str(record.identity), record.failure.error, record.failure.message) for record in records if record.failure
    )
    return [Table("Failures", ("result", "error", "message"), rows, "")] if rows else []
