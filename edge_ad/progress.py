"""How long work tells how far it is: a callback in the library, a bar on a terminal."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told of work as it is done."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` steps of ``what`` are done."""


def no_progress(done: int, total: int, what: str) -> None:
    """Tells nobody."""


def per_round(progress: Progress, total: int, what: str) -> Callable[[], None]:
    """A callback that counts its calls for ``progress``."""
    counter = itertools.count(1)
    return lambda: progress(next(counter), total, what)


@contextmanager
def terminal_progress(enabled: bool = True) -> Iterator[Progress]:
    """A bar per kind of work on stderr; nothing where stderr is no terminal."""
    if not enabled or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show
