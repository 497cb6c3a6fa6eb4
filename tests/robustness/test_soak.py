"""The short form of benchmarks/robustness: three thousand frames with faults, and four clients of one detector."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import edge_ad
from edge_ad.runtime.faults import Fault

Write = Callable[..., Path]
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "robustness"


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports one of the scripts as Python does where it is run: its folder comes first."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def report(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    soak = script("soak")
    return soak.soak(soak.tiny_bundle(tmp_path_factory.mktemp("soak")), 3000, 0.1, spans=12)


def test_every_fault_occurred_was_counted_and_no_result_is_wrong(report: Any) -> None:
    assert report.complaints == []
    assert report.samples[-1].frames == 3000
    stats = report.stats
    for fault in (Fault.NO_FRAME, Fault.CHANGED, Fault.SOURCE, Fault.INFERENCE, Fault.NON_FINITE):
        assert stats.faults[fault] >= 10, fault
    assert min(stats.skipped, stats.reported, stats.substituted, stats.reopened) >= 10
    assert stats.captured == stats.results + stats.skipped


def test_nothing_grows(report: Any) -> None:
    """After a third of the streams, which warm caches up. A leak of one map (10 kB) per frame would be 20 MB.

    In a process that has run other tests the allocator alone moves by four.
    """
    warm, last = report.samples[4], report.samples[-1]
    assert last.handles == warm.handles
    assert last.threads <= warm.threads + 1  # one that was joined may not be gone yet
    assert last.resident_bytes - warm.resident_bytes < 8_000_000


def test_a_soak_notices(report: Any) -> None:
    assert replace(report, wrong=2).complaints == ["2 results are wrong"]
    assert replace(report, injected=report.injected + Counter({Fault.FRAME: 1})).complaints == [
        "frame: 1 injected, 0 counted"
    ]
    assert replace(report, stats=replace(report.stats, captured=report.stats.captured + 3)).complaints == [
        "3 frames are unaccounted for"
    ]
    leaking = [
        replace(sample, resident_bytes=10**8 + 50 * sample.frames, latency_ms=0.5 + 1e-6 * sample.frames)
        for sample in report.samples
    ]
    assert replace(report, samples=leaking).slope(lambda sample: sample.resident_bytes) == pytest.approx(500_000)
    assert replace(report, samples=leaking).slope(lambda sample: sample.latency_ms) == pytest.approx(0.01)


def test_clients_get_their_own_results(script: Any, tiny_bundle: Write) -> None:
    load = script("load")
    with edge_ad.load(tiny_bundle()) as detector:
        measured = load.measure(detector, 4, 200)
    assert (measured.clients, measured.frames, measured.differing) == (4, 200, 0)
    assert measured.frames_per_s > 0


@pytest.mark.parametrize(
    ("name", "arguments", "lines"),
    [
        ("soak", ["--frames", "300"], ["| handles |", "| non_finite |", "0 results are wrong"]),
        ("load", ["--frames", "40", "--rounds", "2"], ["| 1 |", "| 16 |", "| 0 of 80 |"]),
        ("budget", ["--frames", "1"], ["| none | 0 of 4 |", "| 0 | 4 of 4 |"]),
        ("hashing", ["--loads", "1"], ["tiny.edgead, 0 MB, median of 1 loads in turn: ", "s without, ratio "]),
        ("stream", ["--frames", "2", "--rounds", "2"], ["| bare sessions |", "| stream |"]),
    ],
)
def test_the_scripts_print_tables(
    script: Any,
    tiny_bundle: Write,
    caplog: pytest.LogCaptureFixture,
    name: str,
    arguments: list[str],
    lines: list[str],
) -> None:
    caplog.set_level("WARNING", "edge_ad.runtime")  # a soak silences it; this brings it back afterwards
    done = CliRunner().invoke(script(name).main, [str(tiny_bundle()), *arguments])
    assert done.exit_code == 0, done.output
    assert all(line in done.output for line in lines)
