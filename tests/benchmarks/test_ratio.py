import numpy as np
import pytest
import scipy.stats

from edge_ad.benchmarks.ratio import Ratio, ratio_of_medians
from edge_ad.benchmarks.timing import Timing
from edge_ad.errors import InputError


def lognormal(seed, scale, count=400):
    return Timing(tuple(scale * np.random.default_rng(seed).lognormal(0, 0.2, count)))


@pytest.mark.parametrize("interleaved", [True, False])
def test_constant_runs_leave_no_doubt(interleaved):
    assert ratio_of_medians(Timing((3.0, 3.0)), Timing((2.0, 2.0)), interleaved=interleaved) == Ratio(1.5, 1.5, 1.5)


@pytest.mark.parametrize("interleaved", [True, False])
def test_of_independent_samples_the_interval_is_that_of_scipy(interleaved):
    above, below = lognormal(1, 1.1), lognormal(2, 1.0)
    found = ratio_of_medians(above, below, interleaved=interleaved)
    expected = scipy.stats.bootstrap(
        (above.samples_ms, below.samples_ms),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=interleaved,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found.value == above.median_ms / below.median_ms
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.015)
    assert found.differs


def test_what_hits_both_sides_alike_widens_no_interleaved_interval():
    moods = np.random.default_rng(4).lognormal(0, 0.5, 300)  # of the machine, round by round
    above, below = Timing(tuple(1.02 * moods)), Timing(tuple(moods))
    paired, alone = (ratio_of_medians(above, below, interleaved=each) for each in (True, False))
    assert paired.high - paired.low < 1e-9 < 0.05 < alone.high - alone.low
    assert (paired.differs, alone.differs) == (True, False)


def test_two_halves_of_a_run_whose_samples_follow_one_another_seldom_differ():
    """By single samples, half of these pairs would be said to differ."""
    rng = np.random.default_rng(5)

    def run():
        noise = rng.normal(size=1000)
        for index in range(1, 1000):
            noise[index] += 0.9 * noise[index - 1]
        return Timing(tuple(np.exp(noise / 50)))

    assert sum(ratio_of_medians(run(), run(), interleaved=False).differs for _ in range(20)) <= 4


def test_rounds_of_different_counts_are_no_rounds():
    with pytest.raises(InputError, match="equal counts, but these have 1 and 2"):
        ratio_of_medians(Timing((1.0,)), Timing((1.0, 2.0)), interleaved=True)
