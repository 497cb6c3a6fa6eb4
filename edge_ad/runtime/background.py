"""An iterator that runs in a thread of its own, and the bounded queue between it and its reader."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from enum import StrEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")

_JOIN_TIMEOUT_S = 2.0  # a camera that gives no frame keeps its thread blocked; it is a daemon
_SLICE_S = 0.5  # Windows: Ctrl-C does not end a wait for a lock, and is seen once that is over


class Drop(StrEnum):
    """Which item gives way when the queue is full."""

    NEVER = "never"  # none: the source waits
    OLDEST = "oldest"  # results stay fresh, as a live camera wants
    NEWEST = "newest"  # what waits already is kept


class Background(Generic[Item]):
    """Reads ``items`` in a thread, from its making until `stop`; iterate for what it read.

    Args:
        items: a generator; it is read in the thread, and closed there.
        name: of the thread.
        size: items that may wait, at least 1.
        drop: which one gives way when they are that many.
        on_drop: called for each that did, in the thread.

    An exception of ``items`` is raised to the reader, after what came before it.
    """

    def __init__(
        self,
        items: Generator[Item],
        name: str,
        *,
        size: int = 1,
        drop: Drop = Drop.NEVER,
        on_drop: Callable[[], object] = lambda: None,
    ) -> None:
        self._items = items
        self._size = size
        self._drop = drop
        self._on_drop = on_drop
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._wait_for_news()
                if not self._queue:
                    break
                item = self._queue.popleft()
                self._changed.notify_all()
            yield item
        error, self._error = self._error, None
        if error is not None and not self._stopped:
            try:
                raise error
            finally:
                del (
                    error
                )  # its traceback holds this frame: a cycle would keep the last frames until garbage is collected

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once an item waits or none will come any more; False after ``timeout_s`` seconds without either."""
        with self._changed:
            return self._wait_for_news(timeout_s)

    def __len__(self) -> int:
        return len(self._queue)

    def stop(self) -> None:
        """The reader wants no more: the thread ends at the next item. What waits is let go. Idempotent."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread, for two seconds at most: `items` may be blocked in something that cannot be stopped."""
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_TIMEOUT_S)

    def _wait_for_news(self, timeout_s: float | None = None) -> bool:
        """See `wait`, with the lock held. In the reader's thread, which Ctrl-C is to interrupt."""
        longest_s = _SLICE_S if sys.platform == "win32" else threading.TIMEOUT_MAX
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not (self._queue or self._done or self._stopped):
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            self._changed.wait(min(left_s, longest_s))
        return True

    def _read(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # noqa: BLE001 - raised again in the reader's thread
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Queue an item, or drop one. False: the reader has left."""
        with self._changed:
            if self._drop is Drop.NEVER:
                self._changed.wait_for(lambda: self._stopped or len(self._queue) < self._size)
            if self._stopped:
                return False
            if len(self._queue) == self._size:
                self._on_drop()
                if self._drop is Drop.NEWEST:
                    return True
                self._queue.popleft()
            self._queue.append(item)
            self._changed.notify_all()
            return True
