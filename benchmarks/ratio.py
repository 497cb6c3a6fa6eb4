"""How much faster or slower, and how sure that is: ratios of medians with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ad.benchmarks.timing import Timing
from edge_ad.errors import InputError

RESAMPLES = 2000
MOST_BLOCK = 32  # samples in a row that are drawn together
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
    """Median of ``timing`` over median of ``base``, with the percentile interval of a circular block bootstrap.

    Latencies follow one another: drawn one by one, two halves of one run would often seem to differ. What the interval
    cannot know is how far the next process would be off: two runs of the same bundle differ by more than one run shows.

    Args:
        interleaved: the n-th samples of both were taken one after the other, so that the machine's moods hit both:
            rounds are drawn as pairs. Otherwise each side is drawn for itself.

    Raises:
        InputError: interleaved runs of different counts.

    Source: Politis and Romano, "A Circular Block-Resampling Procedure for Stationary Data", 1992.
    """
    if interleaved and timing.count != base.count:
        raise InputError(f"interleaved runs have equal counts, but these have {timing.count} and {base.count}")
    rng = np.random.default_rng(0)
    above, below = np.array(timing.samples_ms), np.array(base.samples_ms)
    ratios = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = _draw(rng, len(above))
        other = drawn if interleaved else _draw(rng, len(below))
        ratios[index] = np.median(above[drawn]) / np.median(below[other])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(timing.median_ms / base.median_ms, float(low), float(high))


def _draw(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Numbers of samples: blocks of neighbours from anywhere, as many as there are samples."""
    block = min(MOST_BLOCK, max(1, round(count**0.5)))
    starts = rng.integers(count, size=-(-count // block))
    drawn: NDArray[np.int64] = ((starts[:, None] + np.arange(block)) % count).reshape(-1)[:count]
    return drawn
