"""The tables of results.md, logical.md and performance.md are those of docs/results/ and benchmarks/reference/."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

GENERATOR = Path(__file__).parents[1] / "docs" / "generate_results.py"


def test_the_tables_are_those_of_the_lines():
    generator = runpy.run_path(str(GENERATOR))
    for page in generator["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert generator["render"](text) == text, "run `make docs`"


def test_a_peer_is_compared_by_the_mean_over_seeds(tmp_path: Path):
    """By hand: (90 + 80) / 2 and (50 + 70) / 2 beside one seed of theirs; then the mean of +5.0 and -10.0."""
    figures = {
        ("bsdata", "ours"): [(0.9, 0.5), (0.8, 0.7)],
        ("bsdata", "anomalib"): [(0.8, 0.7)],
        ("casting512", "ours"): [(0.6, None), (0.6, None)],
        ("casting512", "anomalib"): [(0.65, None), (0.75, None)],
        ("kolektorsdd", "ours"): [(0.1, 0.1)],  # not run by the other side yet
    }
    lines = [
        {"method": "padim", "data": data, "side": side, "seed": seed, "auroc": auroc, "aupro": aupro}
        for (data, side), of_seeds in figures.items()
        for seed, (auroc, aupro) in enumerate(of_seeds)
    ]
    path = tmp_path / "peers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = runpy.run_path(str(GENERATOR))["peers"](path).splitlines()
    assert rows[2:] == [
        "| padim | BSData | 85.0 / 60.0 | 80.0 / 70.0 | +5.0 / -10.0 |",
        "| padim | casting | 60.0 | 70.0 | -10.0 |",
        "| **padim** | **mean** |  |  | **-2.5 / -10.0** |",
    ]


def test_every_file_of_lines_is_shown():
    generator = runpy.run_path(str(GENERATOR))
    pages = "".join(page.read_text("utf-8") for page in generator["PAGES"])
    shown = {(found[2], found[3]) for found in generator["BLOCK"].finditer(pages)}
    lines = {name for kind, name in shown if kind in ("table", "verdicts", "kinds", "peers")}
    assert {path.stem for path in generator["LINES"].glob("*.jsonl")} == lines
    folders = {name for kind, name in shown if kind in ("reports", "ratios")}
    assert {path.name for path in generator["REPORTS"].iterdir()} == folders
