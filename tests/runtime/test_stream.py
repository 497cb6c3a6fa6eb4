from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession, fake_detector
from tiny_bundle import some_image, tiny_manifest

from edge_ad.errors import InputError, SourceError
from edge_ad.runtime.stream import Capture, Drop

SETUP = tiny_manifest().setup


def _frames(count: int) -> Iterator[Any]:
    for index in range(count):
        yield some_image(SETUP, index)


def _capture_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edge-ad-capture"]


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited 5 s"
        time.sleep(0.002)


def test_every_frame_in_order() -> None:
    detector = fake_detector(tiny_manifest())
    results = list(detector.stream(_frames(11), color="rgb", queue_size=2))
    assert [result.frame_id for result in results] == list(range(11))
    assert detector.dropped == 0
    for index in (0, 10):
        assert results[index].raw_score == detector(some_image(SETUP, index), color="rgb").raw_score
    assert not _capture_threads()


def test_a_slow_reader_holds_the_source_back() -> None:
    given = []

    def source() -> Iterator[Any]:
        for index in range(50):
            given.append(index)
            yield np.full((1, 1), index)

    with Capture(source(), Drop.NEVER, 3) as capture:
        reader = iter(capture)
        assert next(reader)[0] == 0
        _wait_until(lambda: len(given) == 5)  # one read, three queued, one in the thread's hand
        time.sleep(0.02)
        assert len(given) == 5
        assert [frame_id for frame_id, _ in reader] == list(range(1, 50))
    assert capture.dropped == 0


@pytest.mark.parametrize(("drop", "kept"), [(Drop.OLDEST, [7, 8, 9]), (Drop.NEWEST, [0, 1, 2])])
def test_a_full_queue_drops(drop: Drop, kept: list[int]) -> None:
    with Capture((np.full((1, 1), index) for index in range(10)), drop, 3) as capture:
        _wait_until(lambda: not capture._thread.is_alive())
        read = list(capture)
    assert [frame_id for frame_id, _ in read] == kept
    assert [int(frame[0, 0]) for _, frame in read] == kept
    assert capture.dropped == 7


def test_the_detector_counts_dropped_frames() -> None:
    detector = fake_detector(tiny_manifest())
    exhausted = threading.Event()

    def source() -> Iterator[Any]:
        yield from _frames(10)
        exhausted.set()

    head = detector.sessions[1]
    assert isinstance(head, FakeSession)
    run = head.run
    head.run = lambda feeds: (exhausted.wait(5), run(feeds))[1]  # type: ignore[method-assign]
    results = list(detector.stream(source(), color="rgb", drop="oldest", queue_size=2))
    assert results[-1].frame_id == 9
    assert len(results) + detector.dropped == 10
    assert detector.dropped >= 7


def test_an_error_of_the_source_comes_after_its_frames() -> None:
    def source() -> Iterator[Any]:
        yield from _frames(3)
        raise SourceError("cable pulled")

    stream = fake_detector(tiny_manifest()).stream(source(), color="rgb")
    assert [next(stream).frame_id for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match="cable pulled"):
        next(stream)
    assert not _capture_threads()


def test_an_error_of_the_detector_stops_the_thread() -> None:
    stream = fake_detector(tiny_manifest()).stream(iter(np.zeros((100, 5, 7))), color="rgb")
    with pytest.raises(ValueError):
        next(stream)
    assert not _capture_threads()


def test_closing_stops_the_thread() -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield some_image(SETUP)

    for drop in Drop:
        stream = fake_detector(tiny_manifest()).stream(forever(), color="rgb", drop=drop)
        next(stream)
        assert _capture_threads()
        stream.close()
        assert not _capture_threads(), drop


def test_bad_choices_are_told_at_once() -> None:
    detector = fake_detector(tiny_manifest())
    with pytest.raises(InputError, match="expected one of never, oldest, newest, but got 'some'"):
        detector.stream([], color="rgb", drop="some")
    with pytest.raises(InputError, match="queue_size: expected at least 1, but got 0"):
        detector.stream([], color="rgb", queue_size=0)
