"""Threads that work beside their caller, and the end of the program, which waits for what is under way.

Python stops daemon threads where they next need the interpreter: in the midst of an engine's C++ or OpenCV's, which
aborts the process. Threads that are no daemons keep a program alive that forgot to close a detector, and a
`ThreadPoolExecutor` takes no work any more once the main thread has ended, though the program may live on in others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

Found = TypeVar("Found")

EXIT_TIMEOUT_S = 10.0  # an engine that hangs is left behind


class _UnderWay:
    """Blocks that the end of the program waits for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._blocks = 0
        self._is_over = False

    def begin(self) -> None:
        with self._changed:
            begins = not self._is_over or threading.current_thread() is threading.main_thread()
            self._blocks += begins
        if not begins:
            threading.Event().wait()  # for ever: the process ends meanwhile

    def end(self) -> None:
        with self._changed:
            self._blocks -= 1
            self._changed.notify_all()

    def finish(self) -> None:
        """Let none begin in other threads than this one, and wait for those that have."""
        with self._changed:
            self._is_over = True
            self._changed.wait_for(lambda: not self._blocks, EXIT_TIMEOUT_S)


_under_way = _UnderWay()


def _in_forked_child() -> None:
    global _under_way
    _under_way = _UnderWay()  # the threads that were under way are not in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def under_way() -> Iterator[None]:
    """`finish` waits for this block."""
    blocks = _under_way
    blocks.begin()
    try:
        yield
    finally:
        blocks.end()


def finish() -> None:
    """At the end of the program: wait for the blocks that are `under_way`, in `EXIT_TIMEOUT_S`, and let none begin."""
    _under_way.finish()


class Workers:
    """Up to ``count`` daemon threads that do what `submit` is given, in that order.

    Args:
        count: of threads; they are started as they are needed.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], Found]) -> Future[Found]:
        """``work`` done by a thread: its result, or what it raised. Raises `RuntimeError` once closed."""
        future: Future[Found] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: closed")
            self._waiting.put((future, work))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
                self._threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
                self._threads[-1].start()
        return future

    def close(self) -> None:
        """Cancel what has not begun, and wait for what has. Idempotent."""
        with self._lock:
            self._closed = True
            with suppress(Empty):
                while taken := self._waiting.get_nowait():
                    taken[0].cancel()
            for _ in self._threads:
                self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while taken := self._take():
            future, work = taken
            if future.set_running_or_notify_cancel():
                with under_way():
                    try:
                        future.set_result(work())
                    except BaseException as error:  # noqa: BLE001 - raised again to whom asks for the result
                        future.set_exception(error)
            del taken, future, work  # while it waits for more

    def _take(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        try:
            return self._waiting.get_nowait()
        except Empty:
            self._idle.release()
            return self._waiting.get()
