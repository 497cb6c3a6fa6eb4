"""A bounded queue between a source of frames, read in a thread of its own, and whoever inspects them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from edge_ad.errors import InputError

_JOIN_TIMEOUT_S = 2.0  # a camera that gives no frame keeps its thread blocked; it is a daemon


class Drop(StrEnum):
    """Which frame gives way when the queue is full."""

    NEVER = "never"  # none: the source waits
    OLDEST = "oldest"  # results stay fresh, as a live camera wants
    NEWEST = "newest"  # what waits already is kept


class Capture:
    """Reads ``frames`` in a thread while the block runs; iterate for (frame_id, frame).

    Args:
        frames: any iterable of frames. Each must be an array of its own: they wait in the queue.
        drop: which frame gives way when the queue is full.
        queue_size: frames that may wait, at least 1.

    Attributes:
        dropped: frames that gave way so far.

    An exception of the source is raised to the reader, after the frames that came before it. Leaving the block stops
    the thread at the source's next frame. ``frame_id`` counts captured frames from 0, dropped ones included.
    """

    def __init__(self, frames: Iterable[NDArray[Any]], drop: Drop, queue_size: int) -> None:
        if queue_size < 1:
            raise InputError(f"queue_size: expected at least 1, but got {queue_size}")
        self.dropped = 0
        self._frames = frames
        self._drop = drop
        self._queue_size = queue_size
        self._queue: deque[tuple[int, NDArray[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._capture, name="edge-ad-capture", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_JOIN_TIMEOUT_S)

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._done)
                if not self._queue:
                    break
                numbered = self._queue.popleft()
                self._changed.notify_all()
            yield numbered
        if self._error is not None:
            raise self._error

    def _capture(self) -> None:
        try:
            for frame_id, frame in enumerate(self._frames):
                if not self._put(frame_id, frame):
                    break
        except BaseException as error:  # noqa: BLE001 - raised again in the reader's thread
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _put(self, frame_id: int, frame: NDArray[Any]) -> bool:
        """Queue a frame, or drop one. False: the reader has left."""
        with self._changed:
            if self._drop is Drop.NEVER:
                self._changed.wait_for(lambda: self._stopped or len(self._queue) < self._queue_size)
            if self._stopped:
                return False
            if len(self._queue) == self._queue_size:
                self.dropped += 1
                if self._drop is Drop.NEWEST:
                    return True
                self._queue.popleft()
            self._queue.append((frame_id, frame))
            self._changed.notify_all()
            return True
