import gc
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.benchmarks.timing import Timing, time_interleaved
from edge_ad.errors import InputError


def test_statistics_by_hand():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 10.0))
    assert timing.count == 5
    assert timing.total_ms == 20.0
    assert timing.mean_ms == 4.0
    assert timing.median_ms == 3.0
    assert (timing.min_ms, timing.max_ms) == (1.0, 10.0)
    assert timing.stdev_ms == pytest.approx(12.5**0.5)  # squares 9 + 4 + 1 + 0 + 36 = 50, over n - 1 = 4
    assert timing.p95_ms == pytest.approx(8.8)  # rank 0.95 * 4 = 3.8: 4 + 0.8 * 6
    assert timing.p99_ms == pytest.approx(9.76)  # rank 3.96


@settings(max_examples=25)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=30), st.randoms())
def test_statistics_ignore_the_order_and_scale_with_the_samples(samples, random):
    timing = Timing(tuple(samples))
    shuffled = [10 * sample for sample in samples]
    random.shuffle(shuffled)
    other = Timing(tuple(shuffled))
    for name in ("mean_ms", "median_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "stdev_ms", "total_ms"):
        assert getattr(other, name) == pytest.approx(10 * getattr(timing, name), abs=1e-6)


def test_one_sample_has_no_spread():
    assert Timing((7.0,)).stdev_ms == 0.0


def test_no_sample_is_refused():
    with pytest.raises(InputError, match="expected at least one timed run, but got none"):
        Timing(())


def test_steady_samples_have_no_warning():
    assert Timing((10.0, 10.1) * 100).warnings() == ()


@pytest.mark.parametrize(
    ("samples_ms", "message"),
    [
        ((10.0,) * 99, "only 99 timed runs"),
        ((8.0, 12.0) * 100, "the standard deviation 2.01 ms is 20% of the mean"),
        ((*(10.0,) * 999, 20.0), "the longest run, 20 ms, is 100% above the mean"),
        ((*(10.0,) * 999, 4.0), "the shortest run, 4 ms, is 60% below the mean"),
        ((*(10.0,) * 100, *(10.6,) * 100), "the second half is 6% slower than the first"),
    ],
)
def test_each_reason_for_doubt_is_told(samples_ms, message):
    assert [text for text in Timing(samples_ms).warnings() if message in text]


def test_variants_run_in_turn_and_only_the_timed_rounds_count():
    calls = []
    timings = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, 3, lambda: calls.append("|")
    )
    assert "".join(calls) == "ab|" * 5
    assert {name: timing.count for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_samples_are_the_clock_s_differences(monkeypatch):
    ticks = iter([0, 2_000_000, 5_000_000, 8_500_000])  # two runs of 2 and 3.5 ms
    monkeypatch.setattr("edge_ad.benchmarks.timing.perf_counter_ns", lambda: next(ticks))
    assert time_interleaved({"a": lambda: None}, 0, 2)["a"].samples_ms == (2.0, 3.5)


def test_garbage_collection_is_off_meanwhile_and_on_again_after_an_error():
    states = []

    def fail():
        states.append(gc.isenabled())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        time_interleaved({"a": fail}, 0, 1)
    assert states == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("warmup", "iterations", "message"),
    [
        (-1, 1, "at least 0 warm-up runs, but got -1"),
        (0, 0, "at least 1 timed run, but got 0"),
        (0, -5, "at least 1 timed run, but got -5"),
    ],
)
def test_counts_that_time_nothing_are_refused(warmup, iterations, message):
    with pytest.raises(InputError, match=message):
        time_interleaved({"a": lambda: None}, warmup, iterations)


def test_percentiles_agree_with_the_standard_library():
    samples = np.random.default_rng(0).uniform(1, 2, 101).tolist()
    quantiles = statistics.quantiles(samples, n=100, method="inclusive")
    timing = Timing(tuple(samples))
    assert (timing.p95_ms, timing.p99_ms) == pytest.approx((quantiles[94], quantiles[98]))
