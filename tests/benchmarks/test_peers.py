"""The comparison with a peer: its table; running it wants the peer's own environment."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers" / "compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def line(side, data, auroc, aupro=None, *, method="padim", seed=0, training_s=10.0):
    figures = {"auroc": auroc, "aupro": aupro, "training_s": training_s}
    return {"method": method, "data": data, "seed": seed, "side": side, **figures}


def test_seeds_are_averaged_and_sets_after_them(compare):
    lines = [
        line("ours", "a", 0.9, 0.5, seed=0),
        line("ours", "a", 0.8, 0.7, seed=1),
        line("anomalib", "a", 0.8, 0.7, training_s=20.0),
        line("ours", "b", 0.6),
        line("anomalib", "b", 0.7),
        line("ours", "c", 0.1),  # not run by the other side yet
    ]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in compare.table(lines).splitlines()]
    assert rows[0] == ["method", "set", "ours", "anomalib", "difference", "ours, s", "anomalib, s"]
    assert rows[2:] == [
        ["padim", "a", "85.0 / 60.0", "80.0 / 70.0", "+5.0 / -10.0", "10", "20"],
        ["padim", "b", "60.0 / -", "70.0 / -", "-10.0 / -", "10", "10"],
        ["padim", "**mean**", "72.5 / 60.0", "75.0 / 70.0", "-2.5 / -10.0", "10", "15"],
    ]


def test_lines_of_another_schedule_are_not_continued(compare, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(
        '{"steps": 200, "batch": 32, "coreset_ratio": 0.1, "n": 1}\n'
        '{"steps": 20, "batch": 32, "coreset_ratio": 0.1, "n": 2}\n'
        '{"steps": 20, "batch": 32, "coreset_ratio": 0.01, "n": 3}\n'
    )
    options = compare.Options(Path("python"), Path("weights"), steps=20, batch_size=32, coreset_ratio=0.1)
    assert [found["n"] for found in compare._read(path, options)] == [2]


def test_given_outputs_are_a_predictor(compare):
    given = compare.Given(np.array([1, 2], np.float32), np.ones((2, 3, 4), np.float32))
    raw = given.raw(np.zeros((2, 3, 4, 3), np.uint8))
    assert given.image_size == (3, 4)
    assert raw.scores.tolist() == [1, 2]
