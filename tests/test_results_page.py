"""The tables of docs/results.md are those of the lines in docs/results/ and of the reports in benchmarks/reference/."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATOR = Path(__file__).parents[1] / "docs" / "generate_results.py"


def test_the_tables_are_those_of_the_lines():
    generator = runpy.run_path(str(GENERATOR))
    page = generator["PAGE"].read_text(encoding="utf-8")
    assert generator["render"](page) == page, "run `make docs`"


def test_every_file_of_lines_is_shown():
    generator = runpy.run_path(str(GENERATOR))
    shown = {(found[2], found[3]) for found in generator["BLOCK"].finditer(generator["PAGE"].read_text("utf-8"))}
    assert {path.stem for path in generator["LINES"].glob("*.jsonl")} == {n for kind, n in shown if kind != "reports"}
    assert {path.name for path in generator["REPORTS"].iterdir()} == {n for kind, n in shown if kind == "reports"}
