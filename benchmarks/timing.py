"""Wall-clock samples of callables, and whether to believe them. Knows neither models nor metrics."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from edge_ad.errors import InputError

FEW_SAMPLES = 100  # fewer leave nothing above the 99th percentile
UNSTABLE_STDEV = 0.10  # of the mean, as in pyperf
UNSTABLE_EXTREME = 0.50  # of the mean, as in pyperf
DRIFT = 0.05  # of the first half's median; thermal throttling shows here


@dataclass(frozen=True)
class Timing:
    """Durations of the calls of one callable, in the order they were made. At least one."""

    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise InputError("expected at least one timed run, but got none")

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.samples_ms)

    @property
    def total_ms(self) -> float:
        """Sum of the samples."""
        return sum(self.samples_ms)

    @property
    def mean_ms(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.samples_ms)

    @property
    def median_ms(self) -> float:
        """Half of the samples lie below."""
        return statistics.median(self.samples_ms)

    @property
    def p95_ms(self) -> float:
        """95th percentile, interpolated linearly between samples."""
        return self._percentile(95)

    @property
    def p99_ms(self) -> float:
        """99th percentile, interpolated linearly between samples."""
        return self._percentile(99)

    @property
    def min_ms(self) -> float:
        """Shortest sample."""
        return min(self.samples_ms)

    @property
    def max_ms(self) -> float:
        """Longest sample."""
        return max(self.samples_ms)

    @property
    def stdev_ms(self) -> float:
        """Sample standard deviation (n - 1); 0 for one sample."""
        return statistics.stdev(self.samples_ms) if self.count > 1 else 0.0

    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust these samples, one sentence each; empty where there is none.

        Source: the limits of pyperf's ``format_checks``; drift is ours.
        """
        found = []
        mean_ms, stdev_ms = self.mean_ms, self.stdev_ms
        if self.count < FEW_SAMPLES:
            found.append(f"only {self.count} timed runs: p95 and p99 mean little below {FEW_SAMPLES}")
        if stdev_ms >= UNSTABLE_STDEV * mean_ms:
            found.append(f"the standard deviation {stdev_ms:.3g} ms is {stdev_ms / mean_ms:.0%} of the mean")
        for name, extreme_ms in (("shortest", self.min_ms), ("longest", self.max_ms)):
            off = extreme_ms / mean_ms - 1
            if abs(off) >= UNSTABLE_EXTREME:
                side = "above" if off > 0 else "below"
                found.append(f"the {name} run, {extreme_ms:.3g} ms, is {abs(off):.0%} {side} the mean")
        if (drift := self._drift()) >= DRIFT:
            found.append(f"the second half is {drift:.0%} slower than the first: throttling, or a busier machine")
        return tuple(found)

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(self.samples_ms, percent))

    def _drift(self) -> float:
        """How much slower the second half is, as a fraction of the first; 0 where too few samples can tell."""
        half = self.count // 2
        if self.count < FEW_SAMPLES:
            return 0.0
        return statistics.median(self.samples_ms[half:]) / statistics.median(self.samples_ms[:half]) - 1


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    warmup: int,
    iterations: int,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every variant once per round, round after round, so that the machine's noise hits all of them alike.

    The garbage collector is off meanwhile. What a call returns is dropped inside the timed span.

    Args:
        variants: name to callable.
        warmup: rounds before the first that is timed, at least 0.
        iterations: timed rounds, at least 1.
        after_round: called after each round, outside the timed spans.

    Raises:
        InputError: a count is too small.
    """
    check_counts(warmup, iterations)
    samples_ms: dict[str, list[float]] = {name: [] for name in variants}
    with _no_garbage_collection():
        for index in range(warmup + iterations):
            for name, call in variants.items():
                start_ns = perf_counter_ns()
                call()
                elapsed_ns = perf_counter_ns() - start_ns
                if index >= warmup:
                    samples_ms[name].append(elapsed_ns / 1e6)
            after_round()
    return {name: Timing(tuple(samples)) for name, samples in samples_ms.items()}


def time_once(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start_ns = perf_counter_ns()
    call()
    return (perf_counter_ns() - start_ns) / 1e6


def check_counts(warmup: int, iterations: int) -> None:
    """Raise `InputError` where no run would be timed."""
    if warmup < 0:
        raise InputError(f"expected at least 0 warm-up runs, but got {warmup}")
    if iterations < 1:
        raise InputError(f"expected at least 1 timed run, but got {iterations}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
