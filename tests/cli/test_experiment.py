from __future__ import annotations

from pathlib import Path

import pytest

from edge_ad.data.synthetic import write_synthetic

CONFIG = """
setups = [{{name = "whole", image_size = [32, 32], tile_size = [32, 32]}}]
precisions = ["torch"]
{more}
[[datasets]]
path = "${{PLATES}}"
[[backbones]]
name = "resnet18"
weights = "none"
[parameters.padim]
dimensions = 5
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = write_synthetic(tmp_path / "plates", size=(32, 32), train=6, test_good=2, test_defective=2)
    monkeypatch.setenv("PLATES", str(data))
    return write_config(tmp_path)


def write_config(folder: Path, more: str = "") -> Path:
    path = folder / "plates.toml"
    path.write_text(CONFIG.format(more=more))
    return path


def test_runs_once_then_only_writes_tables(run, config: Path, tmp_path: Path):
    out = tmp_path / "out"
    code, printed, talk = run("experiment", config, "-o", out)
    assert code == 0
    assert printed == f"{out}: 1 of 1 lines, tables in results.md, .csv and .html\n"
    assert talk.startswith("[1/1] plates/plates padim resnet18 whole seed 0 torch mean: AUROC ")
    assert {path.name for path in out.iterdir()} >= {"results.jsonl", "results.md", "results.csv", "results.html"}
    assert not list((out / "runs").iterdir())

    content = (out / "results.jsonl").read_bytes()
    (out / "results.md").unlink()
    assert run("experiment", config, "-o", out) == (0, printed, "")
    assert (out / "results.jsonl").read_bytes() == content
    assert "# Experiment plates\n\n1 of 1 results measured" in (out / "results.md").read_text()

    write_config(config.parent, "seeds = [0, 1]")
    (out / "results.md").unlink()
    assert run("experiment", config, "-o", out, "--print").out.splitlines() == [
        "plates/plates padim resnet18 whole seed 0: done",
        "plates/plates padim resnet18 whole seed 1: 1 of 1 lines missing",
        "1 of 2 lines missing, in 1 of 2 cells",
    ]
    code, printed, talk = run("experiment", config, "-o", out, "--tables-only")
    assert (code, talk) == (0, "")
    assert "1 of 2 results measured, 0 failed, 1 still to be computed" in (out / "results.md").read_text()

    write_config(config.parent, 'threshold = "max"')
    code, _, talk = run("experiment", config, "-o", out)
    assert (code, talk.count("\n")) == (2, 1)
    assert "threshold: sigma:3 there, max here" in talk
    assert run("experiment", config, "-o", out, "--recompute", "--keep")[0] == 0
    assert (out / "results.jsonl").read_bytes().count(b"\n") == 2
    assert list((out / "runs").glob("*/run/run.json"))


def test_print_lists_cells_and_touches_nothing(run, config: Path, tmp_path: Path):
    write_config(config.parent, 'seeds = [0, 1]\nscore_merges = ["mean", "max"]')
    code, printed, talk = run("experiment", config, "-o", tmp_path / "out", "--print")
    assert (code, talk) == (0, "")
    assert printed.splitlines() == [
        "plates/plates padim resnet18 whole seed 0: 2 of 2 lines missing",
        "plates/plates padim resnet18 whole seed 1: 2 of 2 lines missing",
        "4 of 4 lines missing, in 2 of 2 cells",
    ]
    assert not (tmp_path / "out").exists()


def test_a_failed_cell_is_told_and_the_exit_code_is_1(run, config: Path, tmp_path: Path):
    write_config(config.parent, 'threshold = "quantile:0.99"')  # two held-out images are too few
    out = tmp_path / "out"
    code, printed, talk = run("experiment", config, "-o", out)
    assert code == 1
    assert printed == f"{out}: 0 of 1 lines, tables in results.md, .csv and .html\n"
    assert "seed 0 torch mean: TooFewImagesError: threshold rule 'quantile:0.99' needs" in talk
    assert talk.endswith(f"error: 1 of 1 lines failed, listed in {out / 'results.md'}\n")
    assert "| TooFewImagesError |" in (out / "results.md").read_text()


def test_interrupted_the_tables_are_written_and_the_exit_code_is_130(
    run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_config(config.parent, "seeds = [0, 1]")
    from edge_ad.experiment import measure

    train, calls = measure.train, []

    def once(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return train(*arguments, **options)

    monkeypatch.setattr(measure, "train", once)
    code, _, talk = run("-q", "experiment", config, "-o", tmp_path / "out")
    assert (code, talk.strip()) == (130, "interrupted")
    assert "1 of 2 results measured" in (tmp_path / "out" / "results.md").read_text()


def test_processes(run, config: Path, tmp_path: Path):
    write_config(config.parent, "seeds = [0, 1]")
    code, printed, _ = run("experiment", config, "-o", tmp_path / "out", "--jobs", "2")
    assert (code, printed.split(": ")[1].split(",")[0]) == (0, "2 of 2 lines")


def test_a_config_that_cannot_be_read(run, tmp_path: Path):
    code, _, talk = run("experiment", tmp_path / "no.toml", "-o", tmp_path / "out")
    assert (code, talk) == (2, f"error: cannot read {tmp_path / 'no.toml'}: No such file or directory\n")
