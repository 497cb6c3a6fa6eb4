"""How much faster or slower, and how sure that is: ratios of medians with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_ad.benchmarks.timing import Timing
from edge_ad.errors import InputError

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and the ends of its `CONFIDENCE` interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """For tables."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def differs(self) -> bool:
        """Whether 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


def ratio_of_medians(timing: Timing, base: Timing, *, interleaved: bool) -> Ratio:
    """Median of ``timing`` over median of ``base``, with the percentile bootstrap's interval.

    Args:
        interleaved: the n-th samples of both were taken one after the other, so that the machine's moods hit both:
            rounds are drawn as pairs. Otherwise each side is drawn for itself.

    Raises:
        InputError: interleaved runs of different counts.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    if interleaved and timing.count != base.count:
        raise InputError(f"interleaved runs have equal counts, but these have {timing.count} and {base.count}")
    rng = np.random.default_rng(0)
    above, below = np.array(timing.samples_ms), np.array(base.samples_ms)
    ratios = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = rng.integers(len(above), size=len(above))
        other = drawn if interleaved else rng.integers(len(below), size=len(below))
        ratios[index] = np.median(above[drawn]) / np.median(below[other])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(timing.median_ms / base.median_ms, float(low), float(high))
