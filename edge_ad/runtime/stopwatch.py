"""Milliseconds per stage of one call."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up laps by name, from its making on.

    ``laps_ms`` holds what was measured so far; a stage that runs once per tile adds up over the tiles.
    """

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._start_ns = self._lap_ns = time.perf_counter_ns()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to ``stage``."""
        now_ns = time.perf_counter_ns()
        self.laps_ms[stage] = self.laps_ms.get(stage, 0.0) + (now_ns - self._lap_ns) / 1e6
        self._lap_ns = now_ns

    def stop(self) -> dict[str, float]:
        """All laps, and ``total`` from the start to the last lap."""
        return {**self.laps_ms, "total": (self._lap_ns - self._start_ns) / 1e6}
