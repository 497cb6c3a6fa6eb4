"""Frames in, results out, in three overlapping stages: capture, inference, and what the reader does.

::

    source ─► capture thread ─► queue (bounded, drop policy) ─► inference thread ─► one result ─► reader's thread
              reads, reopens                                    converts, resizes,                seams, thresholds,
                                                                runs the tiles                    the reader's own work

Under way at any moment: ``queue_size`` frames in the queue, one in the hand of each thread, one before the reader.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import EdgeAdError, FrameChangedError, StalledError
from edge_ad.imaging import Color
from edge_ad.runtime.background import Background, Drop
from edge_ad.runtime.capture import Captured, Source, capture
from edge_ad.runtime.faults import Action, Fault, FaultPolicy, Ledger, fault_of
from edge_ad.runtime.result import Result, error_result

if TYPE_CHECKING:
    from edge_ad.runtime.detector import Detector, RawResult


@dataclass(frozen=True)
class StreamOptions:
    """See `Detector.stream`."""

    color: Color
    bits: int | None
    drop: Drop
    queue_size: int
    policy: FaultPolicy
    standby: Detector | None
    copy: bool


class _Outcome(NamedTuple):
    """Of the inference of one frame: outputs and who gave them; or none, and the fault to report."""

    captured: Captured
    detector: Detector
    raw: RawResult | None
    fault: Fault | None = None
    error: str | None = None


def run_stream(detector: Detector, source: Source, options: StreamOptions, ledger: Ledger) -> Generator[Result]:
    """What `Detector.stream` gives, once its arguments are checked. Threads start with the first ``next``."""
    stopped = threading.Event()
    frames = Background(
        capture(source, options.policy, ledger, stopped, copy=options.copy),
        "edge-ad-capture",
        size=options.queue_size,
        drop=options.drop,
        on_drop=lambda: ledger.count("dropped"),
    )
    outcomes = Background(_Inference(detector, options, ledger).outcomes(frames), "edge-ad-inference")
    reader = iter(outcomes)
    try:
        while True:
            while not outcomes.wait(options.policy.stall_s):
                _stall(options.policy, ledger, len(frames))
            if (outcome := next(reader, None)) is None:
                return
            result = _result(outcome, options)
            ledger.count("results")
            yield result
    finally:
        stopped.set()
        frames.stop()
        outcomes.stop()
        outcomes.join()
        frames.join()


def _result(outcome: _Outcome, options: StreamOptions) -> Result:
    (frame_id, frame, watch), detector = outcome.captured, outcome.detector
    watch.lap("handover")
    if outcome.raw is None:
        return error_result(
            frame,
            color=options.color,
            bits=options.bits,
            map_size=detector.image_size,
            tiles=len(detector.grid),
            timings_ms=watch.stop(),
            frame_id=frame_id,
            device=detector.device,
            fault=outcome.fault,
            error=outcome.error or "",
        )
    result = detector.conclude(
        outcome.raw, frame, color=options.color, bits=options.bits, watch=watch, frame_id=frame_id
    )
    return replace(result, fault=outcome.fault, error=outcome.error) if outcome.fault else result


def _stall(policy: FaultPolicy, ledger: Ledger, waiting: int) -> None:
    who = f"the engine hangs, {waiting} frames wait" if waiting else "the source gives no frame, or the engine hangs"
    message = f"no result for {policy.stall_s:g} s: {who}"
    ledger.fault(Fault.STALLED, policy[Fault.STALLED], message)
    if policy[Fault.STALLED] == Action.RAISE:
        raise StalledError(message)


class _Cause(NamedTuple):
    """Why a frame is not as the others: what its result says of it."""

    fault: Fault
    error: str  # a message, for an exception holds its frames


class _Inference:
    """The middle stage: each frame to its outputs, or to what the policy makes of its fault."""

    def __init__(self, detector: Detector, options: StreamOptions, ledger: Ledger) -> None:
        self._detector = detector
        self._options = options
        self._ledger = ledger
        self._lost: _Cause | None = None  # set once the engine has failed and the standby has taken over
        self._format: tuple[tuple[int, ...], np.dtype[Any]] | None = None  # of the first frame that was inspected

    def outcomes(self, frames: Iterable[Captured]) -> Generator[_Outcome]:
        """One per frame that is not skipped. Raises what the policy raises."""
        for captured in frames:
            captured.watch.lap("queue")
            outcome = self._checked(captured)
            if outcome is None:
                self._ledger.count("skipped")
            else:
                yield outcome

    def _checked(self, captured: Captured) -> _Outcome | None:
        try:
            changed = self._check_format(captured.frame)
        except FrameChangedError as error:
            return self._answer(captured, self._lost, error, None)
        return self._inspect(captured, self._lost, changed)

    def _inspect(self, captured: Captured, cause: _Cause | None, changed: _Cause | None) -> _Outcome | None:
        """``cause``: why the standby does it; None: the detector itself. ``changed``: of the frame, told already."""
        detector = self._options.standby if cause else self._detector
        assert detector is not None  # `Detector.stream` asks for one where the policy falls back
        _, frame, watch = captured
        try:
            raw = detector.infer(frame, color=self._options.color, bits=self._options.bits, watch=watch)
        except EdgeAdError as error:
            return self._answer(captured, cause, error, changed)
        self._format = self._format or (frame.shape, frame.dtype)
        if cause:
            self._ledger.count("substituted")
        return _Outcome(captured, detector, raw, *(cause or changed or ()))

    def _answer(
        self, captured: Captured, cause: _Cause | None, error: EdgeAdError, changed: _Cause | None
    ) -> _Outcome | None:
        """What the policy makes of ``error``. Raises it where the standby failed too."""
        fault = fault_of(error)
        if fault is None:
            raise error
        action = self._options.policy[fault]
        if action == Action.FALL_BACK and cause:
            action = Action.RAISE
        self._ledger.fault(fault, action, f"frame {captured.frame_id}: {error}")
        if action == Action.SKIP:
            return None
        if action == Action.REPORT:
            self._ledger.count("reported")
            return _Outcome(captured, self._detector, None, fault, str(error))
        if action == Action.FALL_BACK:
            found = _Cause(fault, str(error))
            if fault is Fault.INFERENCE:
                self._lost = found  # an engine that failed is not trusted again
            return self._inspect(captured, found, changed)
        raise error

    def _check_format(self, frame: NDArray[Any]) -> _Cause | None:
        """Raise `FrameChangedError` for a frame unlike the first one; return it where such frames are accepted."""
        if self._format is None or not isinstance(frame, np.ndarray) or (frame.shape, frame.dtype) == self._format:
            return None
        shape, dtype = self._format
        message = (
            f"the stream began with frames {dtype} {shape}, but now gives {frame.dtype} {frame.shape}; start a new "
            "stream, or accept them (FaultPolicy.changed)"
        )
        if self._options.policy[Fault.CHANGED] != Action.ACCEPT:
            raise FrameChangedError(message)
        self._ledger.fault(Fault.CHANGED, Action.ACCEPT, message)
        return _Cause(Fault.CHANGED, message)
