"""Threads that work beside their caller, and the end of the program, which waits for what is under way.

Python stops daemon threads where they next need the interpreter: in the midst of an engine's C++ or OpenCV's, which
aborts the process. Threads that are no daemons keep a program alive that forgot to close a detector, and a
`ThreadPoolExecutor` takes no work any more once the main thread has ended, though the program may live on in others.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

Found = TypeVar("Found")

EXIT_TIMEOUT_S = 10.0  # an engine that hangs is left behind


class _UnderWay:
    """Blocks that the end of the program waits for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._blocks = 0
        self._is_over = False

    def begin(self, *, for_another: bool = False) -> None:
        """Raise `SystemExit`, which ends a thread without a word, where the program ends.

        The main thread's blocks begin even so, and those that another block, which is waited for, may wait for.
        """
        with self._changed:
            goes_on = not self._is_over or threading.current_thread() is threading.main_thread()
            if not goes_on and not (for_another and self._blocks):
                raise SystemExit
            self._blocks += 1

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
    """`finish` waits for this block. Raises `SystemExit` where the program has come to that already."""
    blocks = _under_way
    blocks.begin()
    try:
        yield
    finally:
        blocks.end()


def finish() -> None:
    """At the end of the program: wait for the blocks that are `under_way`, in `EXIT_TIMEOUT_S`, and let none begin."""
    _under_way.finish()


class _Task(NamedTuple):
    """What a worker is to do; counted among the blocks until it is done or cancelled."""

    future: Future[Any]
    work: Callable[[], Any]
    blocks: _UnderWay

    def run(self) -> None:
        try:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 - raised again to whom asks for the result
            self.future.set_exception(error)
        finally:
            self.blocks.end()

    def drop(self) -> None:
        self.future.cancel()
        self.blocks.end()


class Workers:
    """Up to ``count`` daemon threads that do what `submit` is given, in that order. They end with this object too.

    Args:
        count: of threads; they are started as they are needed.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], Found]) -> Future[Found]:
        """``work`` done by a thread: its result, or what it raised.

        Raises:
            RuntimeError: this is closed, or the system gives no thread.
            SystemExit: the program ends, see `under_way`.
        """
        future: Future[Found] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: closed")
            _under_way.begin(for_another=True)
            task = _Task(future, work, _under_way)
            self._tasks.put(task)  # before a thread starts, which counts as idle where it finds nothing
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
                try:
                    self._start()
                except RuntimeError:
                    if not self._threads:  # else those will do
                        self._tasks.get_nowait()
                        task.drop()
                        raise
        return future

    def close(self) -> None:
        """Cancel what has not begun, and wait for what has. Idempotent."""
        with self._lock:
            self._closed = True
            with suppress(Empty):
                while task := self._tasks.get_nowait():
                    task.drop()
            for _ in self._threads:
                self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=_work, args=(self._tasks, self._idle), name=self._name, daemon=True)
        thread.start()
        self._threads.append(thread)
        weakref.finalize(self, self._tasks.put, None).atexit = False  # for who lets go of it without `close`


def _work(tasks: SimpleQueue[_Task | None], idle: threading.Semaphore) -> None:
    while True:
        try:
            task = tasks.get_nowait()
        except Empty:
            idle.release()
            task = tasks.get()
        if task is None:
            return
        task.run()
        del task  # while it waits for more
