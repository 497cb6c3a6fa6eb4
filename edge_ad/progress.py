"""How long work tells how far it is: a callback in the library, a bar on a terminal."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

MOST_BARS = 12


class Progress(Protocol):
    """Told of work as it is done."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` steps of ``what`` are done; what follows a comma in it is how they go just now."""


def no_progress(done: int, total: int, what: str) -> None:
    """Tells nobody."""


def per_round(progress: Progress, total: int, what: str) -> Callable[[], None]:
    """A callback that counts its calls for ``progress``."""
    counter = itertools.count(1)
    return lambda: progress(next(counter), total, what)


def plain_progress() -> Progress:
    """One line on stderr, rewritten at every per cent; nothing where that is no terminal."""
    began_s: dict[str, float] = {}

    def show(done: int, total: int, what: str) -> None:
        now_s = time.monotonic()
        first_s = began_s.setdefault(_kind(what), now_s)
        if sys.stderr.isatty() and done * 100 // total != (done - 1) * 100 // total:
            left_min = (now_s - first_s) / max(done - 1, 1) * (total - done) / 60
            left = f", {left_min:.0f} min left" if left_min >= 1 else ""
            print(f"\r{what}: {done}/{total}{left:14}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


@contextmanager
def terminal_progress(enabled: bool = True) -> Iterator[Progress]:
    """A bar per kind of work on stderr, where that is a terminal; a plain line where rich is not installed.

    Of more than `MOST_BARS` the one that has rested longest goes: what does not fit a screen would hide the newest.
    """
    if not enabled or not sys.stderr.isatty():
        yield no_progress
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:  # of the training extra, which an edge box has not
        yield plain_progress()
        return

    columns = TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}  # the last one told of is the last

        def show(done: int, total: int, what: str) -> None:
            task = tasks.pop(_kind(what), None)
            if task is None:
                task = bars.add_task(what, total=total)
                if len(tasks) == MOST_BARS:
                    bars.remove_task(tasks.pop(next(iter(tasks))))
            bars.update(task, completed=done, total=total, description=what)
            tasks[_kind(what)] = task

        yield show


def _kind(what: str) -> str:
    return what.partition(",")[0]
