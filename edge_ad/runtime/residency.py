"""Heads in less memory than they need together: as many as fit stay loaded, the others take turns.

Where constants can lie in a file (`Session.aside`) heads stay opened and read theirs from there; other heads are
compiled anew for every turn.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

from numpy.typing import NDArray

from edge_ad.bundle.manifest import Graph
from edge_ad.errors import EdgeAdError, InferenceError, InputError
from edge_ad.runtime.session import Handle, Session
from edge_ad.workers import Workers

# Bytes needed per byte of a graph's files, while it is compiled too. Measured on an int8 PaDiM ensemble in bf16: 2.2
# loaded, 3.4 with what compiling takes for a moment (benchmarks/robustness/budget.py).
LOADED_PER_STORED = 4
Opener = Callable[[bool], Session]  # told whether to keep constants aside
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(budget: int | str) -> int:
    """Bytes of ``"300MB"``, ``"1.5 GB"``, or of a plain number. Raises `InputError`.

    >>> parse_bytes("300MB"), parse_bytes("1.5 GB"), parse_bytes(7)
    (300000000, 1500000000, 7)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", str(budget).strip().upper())
    if not match:
        raise InputError(f"memory_budget: expected bytes, or a size such as '300MB' or '1.5GB', but got {budget!r}")
    return round(float(match[1]) * _UNITS[match[2]])


def loaded_bytes(graph: Graph) -> int:
    """What a graph is taken to need once it is compiled."""
    return LOADED_PER_STORED * graph.size_bytes


def turn_takers(shared: Graph | None, heads: Sequence[Graph], budget_bytes: int) -> list[int]:
    """Indices of the ``heads`` that are loaded when their turn comes, two at a time; none where all fit at once.

    As few as it takes for the extractor, the heads that stay loaded, and two of these to fit ``budget_bytes``. Spread
    evenly: while the heads between them run, the next one is opened.

    Raises:
        InputError: the budget is smaller than the extractor and two heads, or the only one.
    """
    base = loaded_bytes(shared) if shared else 0
    each = max(loaded_bytes(head) for head in heads)  # heads of one bundle differ little
    if base + len(heads) * each <= budget_bytes:
        return []
    pinned = (budget_bytes - base) // each - 2
    if pinned < 0:
        least = base + min(2, len(heads)) * each
        raise InputError(
            f"memory_budget: {budget_bytes // 10**5 / 10} MB hold not even the extractor and "
            f"{'two heads' if len(heads) > 1 else 'its head'}; "
            f"the least that works here is {-(-least // 10**5) / 10} MB"  # rounded up: it is typed back
        )
    takers = len(heads) - pinned
    return [index * len(heads) // takers for index in range(takers)]


class Slot:
    """One of several graphs at a time; a thread opens the next one while it runs, so that two are loaded at most.

    A frame asks for them in a cycle: keeping the most recently used ones would evict each just before its turn.

    Args:
        openers: each opens one graph; may grow until the first is taken.
    """

    def __init__(self, openers: Sequence[Callable[[], Session]]) -> None:
        self._openers = openers
        self._lock = threading.Lock()
        self._thread = Workers(1, "edge-ad-prefetch")
        self._held: tuple[int, Session] | None = None
        self._ahead: tuple[int, Future[Session]] | None = None
        self._closed = False

    def take(self, index: int) -> Session:
        """The session of graph ``index``, until another one is taken. Raises what opening it raises."""
        with self._lock:
            if self._closed:
                raise InferenceError("this session is closed")
            if self._held and self._held[0] == index:
                return self._held[1]
            if self._held:
                self._held[1].close()
                self._held = None
            ahead, self._ahead = self._ahead, None
            if ahead and ahead[0] != index:
                _discard(ahead[1])
                ahead = None
            session = ahead[1].result() if ahead else self._openers[index]()
            self._held = index, session
            following = (index + 1) % len(self._openers)
            if following != index:
                self._ahead = following, self._thread.submit(self._openers[following])
            return session

    def close(self) -> None:
        """Free what is loaded. Idempotent."""
        with self._lock:
            self._closed = True
            self._thread.close()
            if self._held:
                self._held[1].close()
            if self._ahead:
                _discard(self._ahead[1])
            self._held = self._ahead = None


class SlotSession:
    """A `Session` that takes its turn in a slot.

    Args:
        slot: shared with others.
        index: of its graph there.
        like: the opened graph, for its facts; it is closed here.
    """

    def __init__(self, slot: Slot, index: int, like: Session) -> None:
        self.device, self.precision = like.device, like.precision
        self.inputs, self.outputs = like.inputs, like.outputs
        self.aside = False
        self._slot = slot
        self._index = index
        like.close()

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """See `Session.run`."""
        return self._slot.take(self._index).run(feeds)

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """See `Session.fetch`."""
        return self._slot.take(self._index).fetch(handle)

    def close(self) -> None:
        """Close the slot, and with it all sessions in it."""
        self._slot.close()


def open_together(openers: Sequence[Opener], at_once: int) -> list[Session]:
    """A session per opener: the first by itself, for others may share what it compiles; then several ``at_once``.

    Where one cannot be opened, all are closed, and the first error is raised.
    """
    first, *others = openers
    opened = first(False)
    opening: list[Future[Session]] = []
    with closing(Workers(at_once, "edge-ad-open")) as threads:
        try:
            for opener in others:
                opening.append(threads.submit(partial(opener, False)))  # noqa: PERF401 - of those before one that fails
            return [opened, *(future.result() for future in opening)]
        except BaseException:
            threads.close()
            opened.close()
            for future in opening:
                _discard(future)
            raise
        finally:
            opening.clear()  # an error's traceback holds this frame: a cycle would keep it until garbage is collected


def open_in_turns(openers: Sequence[Opener], takers: Sequence[int]) -> list[Session]:
    """A session per opener; those of ``takers`` keep their constants aside, or else share a slot.

    Each is opened once now, to fail now where it must.
    """
    turns: list[Callable[[], Session]] = []
    slot = Slot(turns)
    sessions: list[Session] = []
    try:
        for index, opener in enumerate(openers):
            session = opener(index in takers)
            if index in takers and not session.aside:
                turns.append(partial(_open_again, opener))
                session = SlotSession(slot, len(turns) - 1, session)
            sessions.append(session)
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return sessions


def _open_again(opener: Opener) -> Session:
    """A head for its turn. Whatever keeps it from that, a bundle that is gone for instance, is an `InferenceError`:
    of a line that runs it is a fault, no longer a wrong argument.
    """
    try:
        return opener(True)
    except EdgeAdError as error:
        raise InferenceError(str(error)) from error


def _discard(opening: Future[Session]) -> None:
    """Wait for a graph that nobody wants any more, and close it."""
    if not opening.cancelled() and not opening.exception():
        opening.result().close()
