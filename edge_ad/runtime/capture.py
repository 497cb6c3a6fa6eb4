"""Frames of a source, one by one, whatever the source does: None, an exception, an end that was not to come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from queue import Empty
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import InputError, NoFrameError, SourceError
from edge_ad.runtime.faults import Action, Fault, FaultPolicy, Ledger, reopen_pause_s
from edge_ad.runtime.stopwatch import Stopwatch


class Frame(NamedTuple):
    """What a source may give in place of a bare array: the frame with what its camera knows of it.

    Attributes:
        pixels: as `Detector` takes them.
        frame_id: of the result; counted from 0 where None.
        info: anything, such as a time stamp or an encoder's position; the result carries it as it is.
    """

    pixels: NDArray[Any] | None
    frame_id: int | str | None = None
    info: Any = None


Frames = Iterable[NDArray[Any] | Frame | None]
# A callable opens it: once at the start, and again where it is lost
Source = Frames | Callable[[], Frames | AbstractContextManager[Frames]]

_POLL_S = 0.1
_NO_FRAME_PAUSE_S = 0.005  # a camera that gives None without waiting must not keep a core busy


class Captured(NamedTuple):
    """A frame of the source."""

    frame_id: int | str  # the camera's, or counted from 0, frames that are dropped or skipped included
    pixels: NDArray[Any]
    info: Any
    watch: Stopwatch  # started when it came


class FrameQueue(Protocol):
    """What `frames_from` asks of a queue: ``queue.Queue``, ``queue.SimpleQueue`` and ``multiprocessing.Queue`` do."""

    def get(self, block: bool = True, timeout: float | None = None) -> NDArray[Any] | Frame | None:
        """The next item. Raises ``queue.Empty`` after ``timeout`` seconds without one."""


class _FramesFrom:
    """See `frames_from`."""

    def __init__(self, queue: FrameQueue) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[NDArray[Any] | Frame]:
        while (given := self._queue.get()) is not None:
            yield given

    def until(self, stopped: threading.Event) -> Generator[NDArray[Any] | Frame]:
        """The same, until ``stopped`` is set, also while none comes; then no frame is taken any more."""
        while not stopped.is_set():
            try:
                given = self._queue.get(timeout=_POLL_S)
            except Empty:
                continue
            if given is None:
                return
            yield given


def frames_from(queue: FrameQueue) -> Iterable[NDArray[Any] | Frame]:
    """The frames that a camera's callback puts into ``queue``: bare arrays or `Frame`; None ends them.

    For `Detector.stream`, which looks every 0.1 s whether it was closed while it waits for one: a closed stream takes
    no frame any more, and another one can go on with the queue. One that comes while `Stream.close` is under way may
    still be taken, and is lost.

    A generator may turn or crop the frames on their way, such as ``(frame[::-1] for frame in frames_from(queue))``. As
    any source that blocks, it notices only at its next frame that its stream was closed, and that frame is lost.
    """
    return _FramesFrom(queue)


def check_source(source: Source, policy: FaultPolicy) -> None:
    """Raise `InputError` where ``source`` neither gives frames nor is a callable, or ``policy`` asks for a callable."""
    if callable(source):
        return
    _check_frames(source, "source")
    if Action.REOPEN in policy.actions:
        raise InputError("reopen: expected a callable that opens the source, such as lambda: frames('rtsp://...')")


def _check_frames(frames: object, name: str) -> None:
    """Raise `InputError` where ``frames`` is a single one, or nothing to iterate over for frames. It is not touched."""
    if isinstance(frames, Frame) or (isinstance(frames, np.ndarray) and _is_one_frame(frames)):
        raise InputError(f"{name}: expected an iterable of frames, but got a single one; call the detector with it")
    can_iterate = hasattr(frames, "__iter__") or hasattr(frames, "__getitem__")
    if isinstance(frames, str | bytes) or not can_iterate:
        raise InputError(
            f"{name}: expected an iterable of frames, but got {type(frames).__name__}; for what OpenCV opens see "
            "`frames` of samples/opencv_loop.py, for a camera that calls back edge_ad.frames_from"
        )


def _is_one_frame(array: NDArray[Any]) -> bool:
    """(H, W), or (H, W, C) with as many channels as frames have; a stack of frames has one axis more."""
    return array.ndim < 3 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))


def capture(
    source: Source, policy: FaultPolicy, ledger: Ledger, stopped: threading.Event, *, copy: bool = True
) -> Generator[Captured]:
    """Number and time the frames of ``source``; answer what it does wrong by ``policy``.

    A source that never gave a frame is not opened again: its name is more likely wrong than its cable.

    Args:
        source: see `Detector.stream`.
        policy: of it `Fault.NO_FRAME`, `Fault.SOURCE` and the pauses.
        ledger: counts and logs.
        stopped: ends a pause, and waiting for a queue of `frames_from`; with them the frames.
        copy: see `Detector.stream`.

    Raises:
        NoFrameError: the source gave None.
        InputError: what a callable opened is nothing to iterate over for frames.
        SourceError: what a callable opened gave no frame at all, or none in as many attempts as the policy allows.
        What the source raises.
    """
    count, attempt = 0, 0
    while True:
        fault = Fault.SOURCE
        error: Exception | None = None  # the source ended
        try:
            with closing(_opened(source, stopped)) as frames:
                for given in frames:
                    pixels, frame_id, info = given if isinstance(given, Frame) else Frame(given)
                    if pixels is not None:
                        ledger.count("captured")
                        watch = Stopwatch()
                        is_borrowed = copy and isinstance(pixels, np.ndarray)
                        known_as = count if frame_id is None else frame_id
                        yield Captured(known_as, pixels.copy() if is_borrowed else pixels, info, watch)
                        count, attempt = count + 1, 0
                        continue
                    message = f"the source gave None after {count} frames; is the camera still connected?"
                    if policy[Fault.NO_FRAME] != Action.SKIP:
                        fault, error = Fault.NO_FRAME, NoFrameError(message)
                        break
                    ledger.fault(Fault.NO_FRAME, Action.SKIP, message)
                    if stopped.wait(_NO_FRAME_PAUSE_S):
                        return
        except Exception as raised:  # noqa: BLE001 - raised again below, unless the policy opens the source again
            error = raised
        is_end = policy[fault] != Action.REOPEN and (count or not callable(source))
        if error is None and (is_end or stopped.is_set()):
            return
        action = policy[fault] if count else Action.RAISE
        why = _gist(error) if error else "the source ended"
        ledger.fault(fault, action, f"after {count} frames: {why}")
        if action == Action.RAISE:
            try:
                raise error or SourceError("the source gave no frame; check its path, index or address")
            finally:
                del error  # its traceback holds this frame
        error = None
        if attempt == policy.reopen_attempts:
            raise SourceError(
                f"the source was opened again {attempt} times and gave no frame, the last time: {why}; check the camera"
            )
        if stopped.wait(reopen_pause_s(attempt, policy)):
            return
        attempt += 1
        ledger.count("reopened")


def _gist(error: Exception) -> str:
    """Its message on one line; its kind where it has none, as time-outs do."""
    return " ".join(str(error).split()) or type(error).__name__


def _opened(source: Source, stopped: threading.Event) -> Generator[NDArray[Any] | Frame | None]:
    """The frames of ``source``. What was opened here is closed here, for a camera must be free before it opens again;
    what was given is its owner's to close.
    """
    with ExitStack() as stack:
        frames = _entered(source(), stack) if callable(source) else source
        for frame in frames.until(stopped) if isinstance(frames, _FramesFrom) else frames:  # noqa: UP028 - see below
            yield frame  # `yield from` closes what it reads from


def _entered(opened: Frames | AbstractContextManager[Frames], stack: ExitStack) -> Frames:
    """The frames of what a callable opened. ``stack`` closes it: by its ``__exit__`` where it is a context manager, for
    entering may be what opens it; else by its ``close``, else by its ``release``.
    """
    if isinstance(opened, AbstractContextManager):
        frames = stack.enter_context(opened)
    else:
        frames = opened
        close = getattr(opened, "close", None) or getattr(opened, "release", None)
        if close is not None:
            stack.callback(close)
    _check_frames(frames, "what the source opened")
    return frames
