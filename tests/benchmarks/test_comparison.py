"""Several bundles of a real engine, timed in turn; and the two commands on it."""

import json
import shutil
from dataclasses import replace

import pytest
from benchmark_fakes import make_report
from click.testing import CliRunner

from edge_ad.benchmarks.comparison import SCHEMA_VERSION, Comparison, run_comparison
from edge_ad.benchmarks.protocol import Latency
from edge_ad.benchmarks.ratio import Ratio
from edge_ad.benchmarks.timing import Timing
from edge_ad.cli import group, main
from edge_ad.errors import GateError, InputError


def edge_ad(*arguments):
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.fixture
def bundles(tiny_bundle, tmp_path):
    first = tiny_bundle()
    return [first, shutil.copytree(first, tmp_path / "other.edgead")]


def test_bundles_run_in_turn_and_are_told_apart(bundles):
    told = []
    found = run_comparison(bundles, warmup=1, iterations=5, progress=lambda *step: told.append(step))
    assert list(found.timings) == [path.name for path in bundles]
    assert {timing.count for timing in found.timings.values()} == {5}
    assert told == [(step, 6, "latency") for step in range(1, 7)]
    ratios = found.ratios
    assert (ratios[bundles[0].name].value, ratios[bundles[0].name].differs) == (1.0, False)
    assert ratios[bundles[1].name].low <= ratios[bundles[1].name].value <= ratios[bundles[1].name].high


def test_ratios_are_to_the_first_bundle():
    timings = {name: Timing((ms,) * 3) for name, ms in (("first", 4.0), ("slower", 6.0), ("faster", 1.0))}
    found = Comparison(SCHEMA_VERSION, make_report().environment, "auto", None, 1, timings, {}, {})
    assert found.ratios == {
        name: Ratio(*(value,) * 3) for name, value in (("first", 1), ("slower", 1.5), ("faster", 0.25))
    }
    assert found.to_json()["ratios"]["slower"]["value"] == 1.5


def test_equal_names_become_paths_and_one_bundle_is_not_two(bundles, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    twin = shutil.copytree(bundles[0], tmp_path / "elsewhere" / bundles[0].name)
    assert list(run_comparison([bundles[0], twin], warmup=0, iterations=1).timings) == [str(bundles[0]), str(twin)]
    with pytest.raises(InputError, match="is there twice"):
        run_comparison([twin, twin], warmup=0, iterations=1)


def test_the_command_on_several_bundles(bundles, tmp_path):
    files = tmp_path / "found.json", tmp_path / "found.md"
    counts = "--warmup", 1, "--iterations", 3
    shown = edge_ad("benchmark", *bundles, *counts, "--json", files[0], "--markdown", files[1])
    assert shown.exit_code == 0, shown.output
    assert "1.000 (1.000 to 1.000)" in shown.output
    assert "1.000 (1.000 to 1.000)" in files[1].read_text()
    found = json.loads(files[0].read_text())
    assert list(found["timings"]) == list(found["ratios"]) == [path.name for path in bundles]
    assert any("only 3 timed runs" in text for text in found["warnings"])
    refused = edge_ad("benchmark", *bundles, "--batch", 4)
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == "--batch: goes with one bundle, but 2 are given"


def test_compare_two_reports(tmp_path):
    old, new = (tmp_path / name for name in ("old.json", "new.json"))
    for path in (old, new):
        path.write_text(json.dumps(make_report().to_json()))
    shown = edge_ad("compare", old, new)
    assert shown.exit_code == 0, shown.output
    assert "warning: old: latency: only 3 timed runs" in shown.output
    found = json.loads(edge_ad("compare", old, new, "--json", "-").stdout)
    assert found["changes"][0]["figure"] == "end to end, median"
    assert found["changes"][0]["ratio"]["value"] == 1.0
    assert edge_ad("compare", old, new, "--json", tmp_path / "found.json").stdout == shown.stdout
    assert json.loads((tmp_path / "found.json").read_text()) == found
    failed = edge_ad("compare", old, new, "--fail-above", 0.1)
    assert isinstance(failed.exception, GateError)
    assert edge_ad("compare", old, new, "--fail-above", 1.0).exit_code == 0


QUICK, SLOW = (4.0,) * 200, (6.0,) * 200
MOODY = (4.0,) * 100 + (8.0,) * 100  # a median of 6, which may as well have been 4


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [(QUICK, SLOW, 3), (SLOW, QUICK, 0), (QUICK, MOODY, 0)],
    ids=["slower", "faster", "who knows"],
)
def test_the_gate_is_closed_to_what_is_surely_slower(tmp_path, capsys, before, after, code):
    """From 4 ms to 6 is 1.5 times as long; the interval of the moody run begins below the limit and ends above it."""
    for name, samples in (("old", before), ("new", after)):
        timing, other = Timing(samples), Timing((5.0,) * 200)
        report = replace(make_report(), latency=Latency(timing, other, other))
        (tmp_path / name).write_text(json.dumps(report.to_json()))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path / "old"), str(tmp_path / "new"), "--fail-above", "1.2"])
    assert (ended.value.code or 0) == code
    told = f"the median latency is 1.500 (1.500 to 1.500) times that of {tmp_path / 'old'}, above --fail-above 1.2"
    assert capsys.readouterr().err == (f"error: {told}\n" if code else "")


def test_a_gate_on_what_is_not_comparable_says_so(tmp_path):
    old, new, report = tmp_path / "old.json", tmp_path / "new.json", make_report()
    other = replace(report, environment=replace(report.environment, cpu="Other"), executed={"shared": "f32"})
    for path, each in ((old, report), (new, other)):
        path.write_text(json.dumps(each.to_json()))
    assert edge_ad("compare", old, new).exit_code == 0
    refused = edge_ad("compare", old, new, "--fail-above", 1.0)
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception).startswith("--fail-above: not comparable: CPU: Test CPU before, Other now; execution")
    assert edge_ad("compare", old, new, "--fail-above", 1.0, "--anyway").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("benchmark", "bundle", "--fail-above-ms"),
        ("compare", "old", "new", "--fail-above"),
        ("export", "run", "-o", "bundle", "--accuracy-drop"),
        ("export", "run", "-o", "bundle", "--parity-tolerance"),
    ],
    ids=lambda arguments: arguments[-1],
)
@pytest.mark.parametrize("limit", ["nan", "-0.1", "inf"])
def test_a_limit_of_a_gate_is_a_number(arguments, limit):
    """Nothing is above NaN: the gate would be open."""
    refused = edge_ad(*arguments, limit)
    assert refused.exit_code == 2
    assert f"expected a finite number of at least 0, but got {limit}" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\xff", "cannot read"), (b"{", "expected a file of"), (b"{}", "expected a file of")],
)
def test_what_is_no_report(tmp_path, content, message):
    path, report = tmp_path / "bad.json", tmp_path / "good.json"
    report.write_text(json.dumps(make_report().to_json()))
    if content is not None:
        path.write_bytes(content)
    failed = edge_ad("compare", report, path)
    assert isinstance(failed.exception, InputError)
    assert message in str(failed.exception)
    assert str(path) in str(failed.exception)
