from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fake_session import wait_until

from edge_ad.runtime.background import Background, Drop

NAME = "edge-ad-background-test"


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def _count(last: int, given: list[int] | None = None) -> Iterator[int]:
    for number in range(last):
        if given is not None:
            given.append(number)
        yield number


def test_everything_in_order() -> None:
    numbers = Background(_count(1000), NAME, size=3)
    assert list(numbers) == list(range(1000))
    numbers.join()
    assert not _threads()


def test_a_slow_reader_holds_the_source_back() -> None:
    given: list[int] = []
    numbers = Background(_count(50, given), NAME, size=3)
    reader = iter(numbers)
    assert next(reader) == 0
    wait_until(lambda: len(given) == 5)  # one read, three queued, one in the thread's hand
    time.sleep(0.02)
    assert len(given) == 5
    assert list(reader) == list(range(1, 50))


@pytest.mark.parametrize(("drop", "kept"), [(Drop.OLDEST, [7, 8, 9]), (Drop.NEWEST, [0, 1, 2])])
def test_a_full_queue_drops(drop: Drop, kept: list[int]) -> None:
    dropped: list[int] = []
    numbers = Background(_count(10), NAME, size=3, drop=drop, on_drop=lambda: dropped.append(1))
    numbers.join()
    assert (list(numbers), len(dropped)) == (kept, 7)


def test_an_error_comes_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("cable pulled")

    reader = iter(Background(source(), NAME))
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="cable pulled"):
        next(reader)


def test_a_source_that_fails_while_it_is_closed_does_not_keep_its_reader() -> None:
    def source() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"):
        list(Background(source(), NAME))


def test_stopping_ends_thread_and_reader() -> None:
    closed = threading.Event()

    def forever() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    for drop in Drop:
        closed.clear()
        numbers = Background(forever(), NAME, size=2, drop=drop)
        reader = iter(numbers)
        next(reader)
        numbers.stop()
        numbers.join()
        assert closed.is_set(), drop
        assert not _threads(), drop
        assert list(reader) == []


def test_a_reader_that_waits_is_woken_by_stop() -> None:
    """The source is blocked in a camera that gives nothing, and cannot be stopped."""
    release = threading.Event()

    def blocked() -> Iterator[int]:
        release.wait()
        yield 1

    numbers = Background(blocked(), NAME)
    read: list[list[int]] = []
    reader = threading.Thread(target=lambda: read.append(list(numbers)))
    reader.start()
    numbers.stop()
    reader.join(5)
    release.set()
    numbers.join()
    assert read == [[]]
    assert not _threads()


def test_waiting_has_an_end() -> None:
    release = threading.Event()

    def late() -> Iterator[int]:
        release.wait()
        yield 1

    numbers = Background(late(), NAME)
    assert not numbers.wait(0.01)
    release.set()
    assert numbers.wait(5)
    assert list(numbers) == [1]
    assert numbers.wait(0)  # nothing will come any more


@pytest.mark.parametrize("read", [Background.wait, lambda numbers: next(iter(numbers))], ids=["wait", "iter"])
def test_ctrl_c_ends_a_reader_s_wait_on_windows(
    read: Callable[[Background[int]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it is seen between two waits for a lock, and not within one."""
    monkeypatch.setattr(sys, "platform", "win32")
    reader, release = threading.current_thread(), threading.Event()
    waited_s: list[float | None] = []
    wait = threading.Condition.wait

    def interrupted(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is not reader:
            return wait(condition, timeout)
        waited_s.append(timeout)
        if len(waited_s) == 3:
            raise KeyboardInterrupt
        return False

    def blocked() -> Iterator[int]:
        release.wait()
        yield 1

    numbers = Background(blocked(), NAME)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Condition, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(numbers)
    release.set()
    numbers.stop()
    numbers.join()
    assert waited_s == [0.5] * 3
