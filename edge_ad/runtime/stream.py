"""Frames in, results out, in three overlapping stages: capture, inference, and what the reader does.

::

    source ─► capture thread ─► queue (bounded, drop policy) ─► inference thread ─► one result ─► reader's thread
              reads, reopens                                    converts, resizes,                seams, thresholds,
                                                                runs the tiles                    the reader's own work

Under way at any moment: ``queue_size`` frames in the queue, one in the hand of each thread, one before the reader.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import EdgeAdError, ForkedError, FrameChangedError, StalledError
from edge_ad.imaging import Color
from edge_ad.runtime.background import Background, Drop
from edge_ad.runtime.capture import Captured, Source, capture
from edge_ad.runtime.faults import Action, Fault, FaultPolicy, Ledger, Stats, fault_of
from edge_ad.runtime.raw_result import RawResult
from edge_ad.runtime.result import Result, error_result
from edge_ad.runtime.stopwatch import Stopwatch
from edge_ad.tiling import Size, TileGrid


class Inspector(Protocol):
    """What a stream asks of a `Detector`: the two halves of a call, and what an error result says of it."""

    grid: TileGrid

    @property
    def image_size(self) -> Size:
        """(H, W) of the bundle's images."""

    @property
    def device(self) -> str:
        """What the graphs run on."""

    def infer(self, frame: NDArray[Any], *, color: Color | str, bits: int | None, watch: Stopwatch) -> RawResult:
        """The half that needs the engine: in the inference thread."""

    def conclude(
        self,
        raw: RawResult,
        frame: NDArray[Any],
        *,
        color: Color,
        bits: int | None,
        watch: Stopwatch,
        frame_id: int | str | None,
    ) -> Result:
        """The other half: in the reader's thread."""


@dataclass(frozen=True)
class StreamOptions:
    """See `Detector.stream`."""

    color: Color
    bits: int | None
    drop: Drop
    queue_size: int
    policy: FaultPolicy
    standby: Inspector | None
    copy: bool


class _Outcome(NamedTuple):
    """Of the inference of one frame: outputs and who gave them; or none, and the fault to report."""

    captured: Captured
    detector: Inspector
    raw: RawResult | None
    fault: Fault | None = None
    error: str | None = None


class Stream:
    """Results of a source's frames, in order: iterate over it. One thread reads; any thread may call `close`.

    Its threads start when the first result is asked for. They end with the source, an error, `close`, a ``with`` block,
    the detector, or the program, whichever comes first; so does a source that the stream has opened.
    """

    def __init__(self, detector: Inspector, source: Source, options: StreamOptions, ledger: Ledger) -> None:
        self._detector = detector
        self._source = source
        self._options = options
        self._ledger = ledger
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._why: EdgeAdError | None = None  # of an end that the reader did not ask for
        self._frames: Background[Captured] | None = None
        self._outcomes: Background[_Outcome] | None = None
        self._reader: Iterator[_Outcome] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        """The next result.

        Raises what the policy raises; `DetectorClosedError` where the detector was closed, `ForkedError` in a child.
        """
        try:
            outcome = self._next_outcome()
            result = _result(outcome, self._options)
        except BaseException:  # the end is one too
            self.close()
            raise
        self._ledger.count("results")
        return result

    def close(self, why: EdgeAdError | None = None) -> None:
        """End it: a reader that waits has its end at once. From any thread, any number of times.

        Waits for its threads, two seconds each at most: a source may be blocked in its driver, and is left behind. Its
        thread ends with the next frame, which nobody gets.

        Args:
            why: what the reader is to have raised, in place of a plain end.
        """
        if os.getpid() != self._pid:  # its threads are not in a forked child
            return
        for stage in reversed(self._stop(why)):
            stage.join()

    def _stop(self, why: EdgeAdError | None = None) -> list[Background[Any]]:
        """As `close`, without the wait: the stages that end."""
        with self._lock:
            if not self._stopped.is_set():
                self._why = why
            self._stopped.set()
            stages = [stage for stage in (self._frames, self._outcomes) if stage is not None]
        _RUNNING.pop(id(self), None)
        for stage in stages:
            stage.stop()
        return stages

    def stats(self) -> Stats:
        """What became of this stream's frames so far, and of their faults."""
        return self._ledger.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self._stop()  # whoever collects garbage does not wait for a camera

    def _next_outcome(self) -> _Outcome:
        outcomes, frames = self._begun()
        policy, ledger = self._options.policy, self._ledger
        skipped = ledger.stats().skipped
        while not outcomes.wait(policy.stall_s):
            before, skipped = skipped, ledger.stats().skipped
            _stall(policy, ledger, skipped - before, len(frames))
        try:
            return next(self._reader)
        except StopIteration:
            if self._why is not None:
                raise copy(self._why) from None  # other streams raise it too, with tracebacks of their own
            raise

    def _begun(self) -> tuple[Background[_Outcome], Background[Captured]]:
        """Both threads, started with the first call. Raises `StopIteration` where it has ended."""
        if os.getpid() != self._pid:  # before the lock: a thread that is not in the child may have held it
            raise ForkedError(
                "this stream was made before the process was forked, and its threads are not in the child; load the "
                "bundle and begin a stream there, or start processes by 'spawn'"
            )
        with self._lock:
            if self._stopped.is_set():
                if self._why is not None:
                    raise copy(self._why)
                raise StopIteration
            if self._outcomes is None or self._frames is None:
                options, ledger = self._options, self._ledger
                self._frames = Background(
                    capture(self._source, options.policy, ledger, self._stopped, copy=options.copy),
                    "edge-ad-capture",
                    size=options.queue_size,
                    drop=options.drop,
                    on_drop=lambda: ledger.count("dropped"),
                )
                inference = _Inference(self._detector, options, ledger)
                self._outcomes = Background(inference.outcomes(self._frames), "edge-ad-inference")
                self._reader = iter(self._outcomes)
                _RUNNING[id(self)] = self
            return self._outcomes, self._frames


def _result(outcome: _Outcome, options: StreamOptions) -> Result:
    (frame_id, frame, info, watch), detector = outcome.captured, outcome.detector
    watch.lap("handover")
    if outcome.raw is None:
        failed = error_result(
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
        return replace(failed, info=info)
    result = detector.conclude(
        outcome.raw, frame, color=options.color, bits=options.bits, watch=watch, frame_id=frame_id
    )
    return replace(result, info=info, fault=outcome.fault, error=outcome.error)


def _stall(policy: FaultPolicy, ledger: Ledger, skipped: int, waiting: int) -> None:
    """``skipped``: frames since the last result, or the last stall. ``waiting``: frames in the queue now."""
    if skipped:
        why = f"{skipped} frames came and were skipped, {waiting} wait"
    elif waiting:
        why = f"the engine hangs, {waiting} frames wait"
    else:
        why = "the source gives no frame, or the engine hangs"
    message = f"no result for {policy.stall_s:g} s: {why}"
    ledger.fault(Fault.STALLED, policy[Fault.STALLED], message)
    if policy[Fault.STALLED] == Action.RAISE:
        raise StalledError(message)


class _Cause(NamedTuple):
    """Why a frame is not as the others: what its result says of it."""

    fault: Fault
    error: str  # a message, for an exception holds its frames


class _Inference:
    """The middle stage: each frame to its outputs, or to what the policy makes of its fault."""

    def __init__(self, detector: Inspector, options: StreamOptions, ledger: Ledger) -> None:
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
            changed = self._check_format(captured.pixels)
        except FrameChangedError as error:
            return self._answer(captured, self._lost, error, None)
        return self._inspect(captured, self._lost, changed)

    def _inspect(self, captured: Captured, cause: _Cause | None, changed: _Cause | None) -> _Outcome | None:
        """``cause``: why the standby has this frame. ``changed``: that of its format, already logged."""
        detector = self._detector_for(cause)
        frame, watch = captured.pixels, captured.watch
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
            return _Outcome(captured, self._detector_for(cause), None, fault, str(error))
        if action == Action.FALL_BACK:
            found = _Cause(fault, str(error))
            if fault is Fault.INFERENCE:
                self._lost = found  # an engine that failed is not trusted again
            return self._inspect(captured, found, changed)
        raise error

    def _detector_for(self, cause: _Cause | None) -> Inspector:
        """Who has the frame: the standby where there is a ``cause``."""
        detector = self._options.standby if cause else self._detector
        assert detector is not None  # `Detector.stream` asks for one where the policy falls back
        return detector

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


_RUNNING: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # streams whose threads run


def close_streams(ledger: Ledger | None = None, why: EdgeAdError | None = None) -> None:
    """Close the running streams of the detector that counts in ``ledger``; all where None. Readers are told ``why``."""
    for found in _RUNNING.valuerefs():  # a list: other threads may begin streams meanwhile
        stream = found()
        if stream is not None and (ledger is None or stream._ledger.whole is ledger):
            stream.close(why)
