"""What may go wrong while a line runs, what is to be done about it, and how often it happened.

Every fault raises unless a `FaultPolicy` says otherwise. Whatever is done instead is counted (`Stats`), logged, and
written into the `Result` it touched: nothing is replaced silently.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from edge_ad.errors import (
    DetectorClosedError,
    EdgeAdError,
    ForkedError,
    FrameChangedError,
    FrameError,
    InferenceError,
    InputError,
    NonFiniteOutputError,
)

LOGGER = logging.getLogger("edge_ad.runtime")
LOG_INTERVAL_S = 60.0


class Fault(StrEnum):
    """What went wrong."""

    NO_FRAME = "no_frame"  # the source gave None in place of a frame
    SOURCE = "source"  # the source raised; or it ended, where it is to be opened again
    STALLED = "stalled"  # no result for `FaultPolicy.stall_s`: the source or the engine hangs
    FRAME = "frame"  # rank, dtype, channels or bits are not what was declared
    CHANGED = "changed"  # size, dtype or channels are not those of the stream's first frame
    INFERENCE = "inference"  # the engine failed, or its device is gone
    NON_FINITE = "non_finite"  # NaN or infinity in a map or score


class Action(StrEnum):
    """What to do about it. Which faults take which: `ACTIONS`."""

    RAISE = "raise"  # the stream ends with the fault's own error
    SKIP = "skip"  # no result for this frame
    REPORT = "report"  # a result whose verdict is "error"
    ACCEPT = "accept"  # inspect it all the same
    REOPEN = "reopen"  # close the source and open it again, after a pause
    FALL_BACK = "fall_back"  # to the standby detector


ACTIONS: Mapping[Fault, tuple[Action, ...]] = {
    Fault.NO_FRAME: (Action.RAISE, Action.SKIP, Action.REOPEN),
    Fault.SOURCE: (Action.RAISE, Action.REOPEN),
    Fault.STALLED: (Action.RAISE, Action.SKIP),
    Fault.FRAME: (Action.RAISE, Action.SKIP, Action.REPORT),
    Fault.CHANGED: (Action.RAISE, Action.SKIP, Action.REPORT, Action.ACCEPT),
    Fault.INFERENCE: (Action.RAISE, Action.SKIP, Action.REPORT, Action.FALL_BACK),
    Fault.NON_FINITE: (Action.RAISE, Action.SKIP, Action.REPORT, Action.FALL_BACK),
}


@dataclass(frozen=True)
class FaultPolicy:
    """What a stream does about each fault.

    Args:
        no_frame, source, stalled, frame, changed, inference, non_finite: an action per `Fault`, of those in `ACTIONS`.
        stall_s: seconds without a result that make a stall; None: never.
        reopen_first_s, reopen_longest_s: the pause before a source is opened again; it doubles from the first to the
            longest while no frame comes.
        reopen_attempts: in a row without a frame, after which the stream raises; None: for ever.

    Raises:
        InputError: a fault does not take that action, a number is out of range, or one would have no effect.
    """

    no_frame: Action | str = Action.RAISE
    source: Action | str = Action.RAISE
    stalled: Action | str = Action.RAISE
    frame: Action | str = Action.RAISE
    changed: Action | str = Action.RAISE
    inference: Action | str = Action.RAISE
    non_finite: Action | str = Action.RAISE
    stall_s: float | None = None
    reopen_first_s: float = 1.0
    reopen_longest_s: float = 30.0
    reopen_attempts: int | None = None

    def __post_init__(self) -> None:
        for fault, actions in ACTIONS.items():
            if self[fault] not in actions:
                raise InputError(f"{fault}: expected one of {', '.join(actions)}, but got {str(self[fault])!r}")
        if not 0 < self.reopen_first_s <= self.reopen_longest_s < math.inf:
            raise InputError(
                f"expected 0 < reopen_first_s <= reopen_longest_s, both finite, but got {self.reopen_first_s}, "
                f"{self.reopen_longest_s}"
            )
        for name, without in (("stall_s", "never"), ("reopen_attempts", "for ever")):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: expected a finite number above 0 (None: {without}), but got {value}")
        if self.stalled != Action.RAISE and self.stall_s is None:
            raise InputError(f"stalled: {self.stalled} after how many seconds? While stall_s is None nothing stalls")
        if self.reopen_attempts is not None and Action.REOPEN not in self.actions:
            raise InputError("reopen_attempts: no fault is answered by reopen; leave it out, or say which")

    def __getitem__(self, fault: Fault) -> Action | str:
        """The action for ``fault``."""
        action: Action | str = getattr(self, fault)
        return action

    @property
    def actions(self) -> frozenset[Action | str]:
        """Every action that may be taken."""
        return frozenset(self[fault] for fault in Fault)


def reopen_pause_s(attempt: int, policy: FaultPolicy) -> float:
    """Seconds before attempt number ``attempt``, counted from 0 since the last frame.

    >>> [reopen_pause_s(attempt, FaultPolicy()) for attempt in (0, 1, 2, 3, 4, 5, 5000)]
    [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    """
    doublings = min(attempt, 64)  # beyond, floats overflow
    return min(policy.reopen_first_s * 2.0**doublings, policy.reopen_longest_s)


def fault_of(error: EdgeAdError) -> Fault | None:
    """The fault that ``error`` of one frame's inspection stands for; None: no policy may hide it."""
    match error:
        case NonFiniteOutputError():
            return Fault.NON_FINITE
        case DetectorClosedError() | ForkedError():  # mistakes of the program, not faults of the line
            return None
        case InferenceError():
            return Fault.INFERENCE
        case FrameChangedError():
            return Fault.CHANGED
        case FrameError():
            return Fault.FRAME
    return None


@dataclass(frozen=True)
class Stats:
    """What became of the frames of one stream, or of all streams of a detector since it was loaded.

    ``captured == results + dropped + skipped + pending``, always.

    Attributes:
        captured: frames that sources gave.
        results: given to the reader, error results among them.
        dropped: gave way to others in a full queue.
        skipped: given no result, by policy.
        reported: error results.
        substituted: results of the standby.
        reopened: times that sources were opened again.
        faults: every fault that occurred, also those that were raised.
    """

    captured: int
    results: int
    dropped: int
    skipped: int
    reported: int
    substituted: int
    reopened: int
    faults: Mapping[Fault, int]

    @property
    def pending(self) -> int:
        """Frames under way; once no stream runs, those given up when one was closed or raised."""
        return self.captured - self.results - self.dropped - self.skipped


class Ledger:
    """Counts and logs, from any thread. Each kind of fault is logged at once, then at most every `LOG_INTERVAL_S`.

    Args:
        now_s: a clock that never jumps.
        whole: counts what this one counts too: of the detector, where this one is a stream's.
        name: of the stream, for log lines.
    """

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic, *, whole: Ledger | None = None, name: str | None = None
    ) -> None:
        self.whole = whole
        self._prefix = f"{name}: " if name else ""
        self._now_s = now_s
        self._lock = threading.RLock()  # a signal's handler may ask for `stats` while its thread counts
        self._counts: Counter[str] = Counter()
        self._logged_s: dict[Fault, float] = {}
        self._unlogged: Counter[Fault] = Counter()

    def count(self, what: str) -> None:
        """One more of ``what``, a field of `Stats` or a `Fault`."""
        with self._lock:
            self._counts[what] += 1
        if self.whole:
            self.whole.count(what)

    def fault(self, fault: Fault, action: Action | str, what: object) -> None:
        """One more ``fault``, answered by ``action``. Those that are raised are not logged: the error tells them."""
        self.count(fault)
        if action == Action.RAISE:
            return
        with self._lock:
            now_s = self._now_s()
            if fault in self._logged_s and now_s - self._logged_s[fault] < LOG_INTERVAL_S:
                self._unlogged[fault] += 1
                return
            self._logged_s[fault] = now_s
            more = self._unlogged.pop(fault, 0)
        since = f" ({more} more since the last line)" if more else ""
        LOGGER.warning("%s%s (%s): %s%s", self._prefix, fault, action, what, since)

    def stats(self) -> Stats:
        """The counts so far."""
        with self._lock:
            counts = {field.name: self._counts[field.name] for field in fields(Stats) if field.name != "faults"}
            return Stats(**counts, faults={fault: self._counts[fault] for fault in Fault if fault in self._counts})
