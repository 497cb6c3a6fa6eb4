from dataclasses import replace

from benchmark_fakes import make_report

from edge_ad.benchmarks.change import changes, doubts
from edge_ad.benchmarks.protocol import Latency, Throughput
from edge_ad.benchmarks.ratio import Ratio
from edge_ad.benchmarks.rendering import changes_to_text
from edge_ad.benchmarks.timing import Timing

STEADY = Timing((4.0,) * 200)


def steady(ms):
    timing = Timing((ms,) * 200)
    return replace(make_report(), latency=Latency(timing, STEADY, timing), throughput=Throughput(16, STEADY))


def test_every_figure_by_hand():
    old, new = steady(8.0), replace(steady(6.0), load_ms=60.0)
    found = {each.figure: (each.old, each.new, each.ratio) for each in changes(old, new)}
    assert found["end to end, median"] == (8.0, 6.0, Ratio(0.75, 0.75, 0.75))
    assert found["bare sessions, median"] == (4.0, 4.0, Ratio(1.0, 1.0, 1.0))
    assert found["throughput, batch 16"] == (4000.0, 4000.0, 1.0)
    assert found["load"] == (120.0, 60.0, 0.5)
    assert found["peak resident, batch 1"] == (60.0, 60.0, 1.0)
    assert "0.750 (0.750 to 0.750)" in changes_to_text(old, new, changes(old, new))


def test_what_one_side_did_not_measure_is_left_out():
    old = steady(8.0)
    new = replace(old, throughput=None, memory=replace(old.memory, resident_peak_bytes=None))
    figures = [each.figure for each in changes(old, new)]
    assert not [figure for figure in figures if figure.startswith(("throughput", "peak"))]


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
