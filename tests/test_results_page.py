"""The tables of results.md, logical.md and performance.md are those of docs/results/ and benchmarks/reference/."""

from __future__ import annotations

import runpy
from pathlib import Path

GENERATOR = Path(__file__).parents[1] / "docs" / "generate_results.py"


def test_the_tables_are_those_of_the_lines():
    generator = runpy.run_path(str(GENERATOR))
    for page in generator["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert generator["render"](text) == text, "run `make docs`"


def test_every_file_of_lines_is_shown():
    generator = runpy.run_path(str(GENERATOR))
    pages = "".join(page.read_text("utf-8") for page in generator["PAGES"])
    shown = {(found[2], found[3]) for found in generator["BLOCK"].finditer(pages)}
    lines = {name for kind, name in shown if kind in ("table", "verdicts", "kinds", "peers")}
    assert {path.stem for path in generator["LINES"].glob("*.jsonl")} == lines
    folders = {name for kind, name in shown if kind in ("reports", "ratios")}
    assert {path.name for path in generator["REPORTS"].iterdir()} == folders
