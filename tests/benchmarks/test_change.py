from dataclasses import replace

import pytest
from benchmark_fakes import make_report

from edge_ad.benchmarks.change import changes, doubts, incomparable
from edge_ad.benchmarks.protocol import Latency, Throughput
from edge_ad.benchmarks.ratio import Ratio
from edge_ad.benchmarks.rendering import changes_to_text
from edge_ad.benchmarks.timing import Timing

STEADY = Timing((4.0,) * 200)


def steady(ms):
    timing = Timing((ms,) * 200)
    return replace(make_report(), latency=Latency(timing, STEADY, timing), throughput=Throughput(16, STEADY))


def test_every_figure_by_hand():
    """No two alike, so that a ratio the wrong way round, or of another figure, is noticed."""
    old = steady(8.0)
    new = replace(
        old,
        latency=Latency(*(Timing((ms,) * 200) for ms in (6.0, 3.0, 10.0))),
        throughput=Throughput(16, Timing((2.0,) * 200)),
        load_ms=60.0,
        first_inference_ms=27.0,
        memory=replace(old.memory, resident_peak_bytes=90 * 2**20),
        bundle=replace(old.bundle, size_bytes=5 * old.bundle.size_bytes),
    )
    found = {each.figure: (each.old, each.new, each.ratio) for each in changes(old, new)}
    size = old.bundle.size_bytes / 2**20
    assert found == {
        "end to end, median": (8.0, 6.0, Ratio(0.75, 0.75, 0.75)),
        "bare sessions, median": (4.0, 3.0, Ratio(0.75, 0.75, 0.75)),
        "frame to Result, median": (8.0, 10.0, Ratio(1.25, 1.25, 1.25)),
        "throughput, batch 16": (4000.0, 8000.0, 2.0),
        "load": (120.0, 60.0, 0.5),
        "first inference": (9.0, 27.0, 3.0),
        "peak resident, batch 1": (60.0, 90.0, 1.5),
        "bundle": (size, 5 * size, 5.0),
    }
    assert "0.750 (0.750 to 0.750)" in changes_to_text(old, new, changes(old, new))


def test_what_one_side_did_not_measure_is_left_out():
    old = steady(8.0)
    new = replace(old, throughput=None, memory=replace(old.memory, resident_peak_bytes=None))
    figures = [each.figure for each in changes(old, new)]
    assert not [figure for figure in figures if figure.startswith(("throughput", "peak"))]


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        ("environment", "usable_cpus", 1, "usable CPUs: 2 before, 1 now"),
        ("environment", "cpu_quota", 1.5, "quota of CPUs: None before, 1.5 now"),
        ("environment", "governor", "powersave", "governor: performance before, powersave now"),
        ("environment", "device_name", "Other", "device: Test <CPU> before, Other now"),
        ("environment", "driver", "9", "driver: None before, 9 now"),
        ("environment", "os", "Other", "system: Linux before, Other now"),
        ("environment", "python", "CPython 3.12", "Python: CPython 3.11 before, CPython 3.12 now"),
        ("config", "threads", 7, "threads asked for: 2 before, 7 now"),
        ("config", "memory_budget", "3MB", "memory budget: None before, 3MB now"),
        ("config", "has_cache", True, "cache of compiled graphs: False before, True now"),
        ("bundle", "method", "stfpm", "method: padim before, stfpm now"),
        ("bundle", "setup", "other", f"setup: {make_report().bundle.setup} before, other now"),
        ("config", "frame", "a photograph", "frame: noise before, a photograph now"),
    ],
)
def test_each_circumstance_is_doubted(part, field, value, told):
    old = steady(8.0)
    new = replace(old, **{part: replace(getattr(old, part), **{field: value})})
    first, *warnings = doubts(old, new)
    assert first == told
    assert all(text.startswith("new: ") for text in warnings)  # of the environment itself


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"warmup": 3}, "warm-up runs: 1000 before, 3 now"),
        ({"iterations": 7}, "timed runs: 1000 before, 7 now"),
        ({"throughput_batch": 8}, "throughput batch: 16 before, 8 now"),
    ],
)
def test_schedules_are_compared(change, told):
    old = steady(8.0)
    new = replace(old, config=replace(old.config, schedule=replace(old.config.schedule, **change)))
    assert doubts(old, new) == (told,)
    assert incomparable(old, new) == ()


def test_throughputs_of_unlike_batches_are_not_compared():
    old = steady(8.0)
    figures = [each.figure for each in changes(old, replace(old, throughput=Throughput(8, STEADY)))]
    assert not [figure for figure in figures if figure.startswith("throughput")]


def test_reports_of_other_circumstances_are_doubted():
    old = steady(8.0)
    assert doubts(old, old) == ()
    new = replace(
        old,
        environment=replace(old.environment, cpu="Other CPU", versions={"numpy": "2.1"}),
        bundle=replace(old.bundle, manifest_sha256="cd" * 32),
    )
    assert list(doubts(old, new)) == [
        "CPU: Test CPU before, Other CPU now",
        "engine and package versions: numpy 2.0 before, numpy 2.1 now",
        f"bundle: {'ab' * 32} before, {'cd' * 32} now",
    ]
    noisy = replace(old, latency=Latency(Timing((1.0, 9.0) * 100), STEADY, STEADY))
    assert [text.partition(":")[0] for text in doubts(noisy, old)] == ["old"] * 3
