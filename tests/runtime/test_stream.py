"""Streams without faults. For those see test_faults.py."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession, fake_detector, stream_threads, wait_until
from numpy.typing import NDArray
from tiny_bundle import some_image, tiny_manifest
from tiny_depth import in_twelve_bits

from edge_ad import FaultPolicy, Frame, Stream, frames_from
from edge_ad.errors import ColorError, DetectorClosedError, EdgeAdError, InputError, SourceError, StalledError
from edge_ad.imaging import Color
from edge_ad.runtime import background
from edge_ad.runtime.background import Drop
from edge_ad.runtime.detector import Detector

SETUP = tiny_manifest().setup


def _frames(count: int) -> Iterator[Any]:
    for index in range(count):
        yield some_image(SETUP, index)


def _before_each_run(detector: Detector, call: Any) -> None:
    """``call()`` before the extractor runs."""
    shared = detector.sessions[0]
    assert isinstance(shared, FakeSession)
    run = shared.run
    shared.run = lambda feeds: (call(), run(feeds))[1]  # type: ignore[method-assign]


def test_every_frame_in_order() -> None:
    detector = fake_detector(tiny_manifest())
    results = list(detector.stream(_frames(11), color="rgb", queue_size=2))
    assert [result.frame_id for result in results] == list(range(11))
    for index, result in enumerate(results):
        alone = detector(some_image(SETUP, index), color="rgb")
        np.testing.assert_array_equal(result.anomaly_map, alone.anomaly_map)
        np.testing.assert_array_equal(result.raw_map, alone.raw_map)
        assert (result.raw_score, result.pred_score) == (alone.raw_score, alone.pred_score)
        assert (result.verdict, result.device, result.fault, result.error) == (alone.verdict, "CPU", None, None)
    stats = detector.stats()
    assert (stats.captured, stats.results, stats.dropped, stats.pending) == (11, 11, 0, 0)
    assert not stats.faults
    assert not stream_threads()


def _as_camera(image: NDArray[np.uint8], color: Color, bits: int | None) -> NDArray[Any]:
    """``image``, RGB, as a camera of that colour and depth gives it."""
    frame = image[:, :, ::-1] if color is Color.BGR else image
    return in_twelve_bits(frame) if bits else frame


@pytest.mark.parametrize("bits", [None, 12])
@pytest.mark.parametrize("color", [Color.RGB, Color.BGR])
def test_frames_are_read_as_declared_and_results_say_so(color: Color, bits: int | None) -> None:
    """Of a frame that could not be inspected too."""
    detector = fake_detector(tiny_manifest())
    frames = [_as_camera(image, color, bits) for image in _frames(2)]
    source = [frames[0].astype(np.float32), *frames]
    bad, *results = detector.stream(source, color=str(color), bits=bits, policy=FaultPolicy(frame="report"))
    for result, frame, image in zip(results, frames, _frames(2), strict=True):
        alone = detector(image, color="rgb")
        np.testing.assert_array_equal(result.frame, frame)
        np.testing.assert_array_equal(result.raw_map, alone.raw_map)
        assert (result.raw_score, result.verdict) == (alone.raw_score, alone.verdict)
    assert bad.verdict == "error"
    assert {(result.color, result.bits) for result in (bad, *results)} == {(color, bits)}


def test_results_own_their_arrays() -> None:
    """The next frame is inferred before this result is made."""
    detector = fake_detector(tiny_manifest())
    stream = detector.stream(_frames(5), color="rgb")
    first = next(stream)
    kept = {name: np.array(getattr(first, name)) for name in ("anomaly_map", "raw_map", "pred_mask", "tile_scores")}
    list(stream)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(first, name), array)


def test_the_reader_works_while_the_next_frame_is_inferred() -> None:
    """Each result waits here until the engine has begun the next frame: without overlap this would never end."""
    detector = fake_detector(tiny_manifest())
    begun = threading.Semaphore(0)
    _before_each_run(detector, begun.release)
    for result in detector.stream(_frames(6), color="rgb"):
        runs = {0: 8, 5: 0}.get(result.frame_id, 4)  # four tiles of each next frame; at first those of its own too
        assert all(begun.acquire(timeout=5) for _ in range(runs))


def test_the_source_is_read_while_a_frame_is_inferred() -> None:
    detector = fake_detector(tiny_manifest())
    given = threading.Semaphore(0)

    def source() -> Iterator[Any]:
        for frame in _frames(6):
            given.release()
            yield frame
        given.release(24)

    waited: list[bool] = []
    _before_each_run(detector, lambda: waited.append(given.acquire(timeout=5)))
    # Four tiles per frame, and a frame given for each: the source must be ahead of the engine.
    assert len(list(detector.stream(source(), color="rgb", queue_size=6))) == 6
    assert all(waited)


def test_what_is_under_way_is_bounded() -> None:
    """A reader that takes one result and stops: capture and inference go on until every place is taken."""
    detector = fake_detector(tiny_manifest())
    stream = detector.stream(_frames(100), color="rgb", queue_size=3)
    next(stream)
    # one given; one before the reader, one in the hand of inference, three in the queue, one in the hand of capture
    wait_until(lambda: detector.stats().captured >= 7)
    time.sleep(0.02)
    assert detector.stats().captured == 7
    assert len(stream_threads()) == 2
    stream.close()
    assert not stream_threads()
    assert detector.stats().pending == 6


@pytest.mark.parametrize("drop", [Drop.OLDEST, Drop.NEWEST])
def test_dropped_frames_are_counted(drop: Drop) -> None:
    detector = fake_detector(tiny_manifest())
    exhausted = threading.Event()

    def source() -> Iterator[Any]:
        yield from _frames(10)
        exhausted.set()

    _before_each_run(detector, lambda: exhausted.wait(5))
    results = list(detector.stream(source(), color="rgb", drop=drop, queue_size=2))
    stats = detector.stats()
    assert (stats.captured, stats.results, stats.pending) == (10, len(results), 0)
    assert len(results) + stats.dropped == 10
    assert stats.dropped >= 7
    assert (results[-1].frame_id == 9) == (drop is Drop.OLDEST)


def test_a_camera_may_reuse_its_buffer() -> None:
    detector = fake_detector(tiny_manifest())
    exhausted = threading.Event()
    buffer = some_image(SETUP)

    def camera() -> Iterator[Any]:
        for index in range(5):
            buffer[:] = some_image(SETUP, index)
            yield buffer
        buffer[:] = 0
        exhausted.set()

    _before_each_run(detector, lambda: exhausted.wait(5))
    results = list(detector.stream(camera(), color="rgb", queue_size=5))
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result.frame, some_image(SETUP, index))
        assert result.raw_score == detector(some_image(SETUP, index), color="rgb").raw_score


def test_frames_that_stay_need_no_copy() -> None:
    frames = list(_frames(3))
    results = fake_detector(tiny_manifest()).stream(frames, color="rgb", copy=False)
    assert all(result.frame is frame for result, frame in zip(results, frames, strict=True))


class _Camera:
    """Its owner may read on, until it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return some_image(SETUP)

    def close(self) -> None:
        self.closed += 1


def test_what_was_given_stays_open_and_what_was_opened_is_closed() -> None:
    given, opened = _Camera(), _Camera()
    for source in (given, lambda: opened):
        stream = fake_detector(tiny_manifest()).stream(source, color="rgb")
        next(stream)
        stream.close()
    assert (given.closed, opened.closed) == (0, 1)


class _Device:
    """A camera that one reader at a time may open, and how it was told that it is free."""

    def __init__(self) -> None:
        self.held = False
        self.freed: list[str] = []

    def hold(self) -> None:
        assert not self.held
        self.held = True

    def free(self, by: str) -> None:
        self.held = False
        self.freed.append(by)


class _Handle:
    """Opened as it is made; one frame, then the cable is pulled."""

    def __init__(self, device: _Device) -> None:
        self.device = device
        if not hasattr(self, "__enter__"):
            device.hold()

    def __iter__(self) -> Iterator[Any]:
        yield some_image(SETUP)
        raise OSError("cable pulled")


class _Releases(_Handle):
    """As OpenCV's."""

    def release(self) -> None:
        self.device.free("release")


class _Closes(_Releases):
    def close(self) -> None:
        self.device.free("close")


class _Enters(_Closes):
    """Opened by ``with`` alone."""

    def __enter__(self) -> Iterator[Any]:
        self.device.hold()
        return iter(self)

    def __exit__(self, *error: object) -> None:
        self.device.free("exit")


@pytest.mark.parametrize(("handle", "by"), [(_Releases, "release"), (_Closes, "close"), (_Enters, "exit")])
def test_what_was_opened_is_freed_before_it_opens_again(handle: type[_Handle], by: str) -> None:
    device = _Device()
    policy = FaultPolicy(source="reopen", reopen_first_s=0.001, reopen_attempts=3)
    stream = fake_detector(tiny_manifest()).stream(lambda: handle(device), color="rgb", policy=policy)
    assert [next(stream).frame_id for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert not device.held
    assert set(device.freed) == {by}


def test_streams_add_up() -> None:
    detector = fake_detector(tiny_manifest())
    for _ in range(2):
        list(detector.stream(_frames(3), color="rgb"))
    assert detector.with_normalisation(detector.manifest.normalisation).stats().results == 6


def test_timings_tell_the_age_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the day jumps back an hour between frames; the stopwatch does not see it."""
    day_s = iter(range(10**6, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(day_s)))
    detector = fake_detector(tiny_manifest())
    stages = ["queue", "convert", "wait", "tiles", "infer", "merge", "handover", "seams", "post"]
    for result in detector.stream(_frames(5), color="rgb"):
        assert list(result.timings_ms) == [*stages, "total"]
        assert result.timings_ms["total"] == pytest.approx(sum(result.timings_ms[stage] for stage in stages))
        assert 0 <= min(result.timings_ms.values()) <= max(result.timings_ms.values()) < 60_000


def test_an_error_of_the_source_comes_after_its_frames() -> None:
    def source() -> Iterator[Any]:
        yield from _frames(3)
        raise SourceError("cable pulled")

    stream = fake_detector(tiny_manifest()).stream(source(), color="rgb")
    assert [next(stream).frame_id for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match="cable pulled"):
        next(stream)
    assert not stream_threads()


def test_an_error_of_the_detector_stops_thestream_threads() -> None:
    stream = fake_detector(tiny_manifest()).stream(iter(np.zeros((100, 5, 7))), color="rgb")
    with pytest.raises(ValueError):
        next(stream)
    assert not stream_threads()


def test_closing_stops_thestream_threads() -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield some_image(SETUP)

    for drop in Drop:
        stream = fake_detector(tiny_manifest()).stream(forever(), color="rgb", drop=drop)
        next(stream)
        assert len(stream_threads()) == 2
        stream.close()
        assert not stream_threads(), drop


def test_frames_of_a_queue() -> None:
    """Bare arrays and `Frame` of a camera that calls back; None ends them."""
    detector = fake_detector(tiny_manifest())
    queue: SimpleQueue[Any] = SimpleQueue()
    for given in (some_image(SETUP, 0), Frame(some_image(SETUP, 1), "second"), None, some_image(SETUP, 2)):
        queue.put(given)
    assert [result.frame_id for result in detector.stream(frames_from(queue), color="rgb")] == [0, "second"]
    assert queue.qsize() == 1


def test_frames_of_a_queue_may_be_worked_on_on_their_way() -> None:
    """Also where the camera pauses: nothing but frames comes out of it."""
    detector = fake_detector(tiny_manifest())
    queue: SimpleQueue[Any] = SimpleQueue()
    stream = detector.stream((frame[::-1] for frame in frames_from(queue)), color="rgb")
    queue.put(some_image(SETUP, 0))
    results = [next(stream)]
    time.sleep(0.25)
    for given in (some_image(SETUP, 1), None):
        queue.put(given)
    results.extend(stream)
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result.frame, some_image(SETUP, index)[::-1])
    assert len(results) == 2


def test_a_queue_that_was_opened_is_not_lost_when_its_stream_is_closed() -> None:
    """Before its first frame and after it, whatever would be done about a camera that ends."""
    for frames in (0, 1):
        for policy in (FaultPolicy(), FaultPolicy(source="reopen")):
            queue: SimpleQueue[Any] = SimpleQueue()
            opened = threading.Event()

            def camera(queue: SimpleQueue[Any] = queue, opened: threading.Event = opened) -> Any:
                opened.set()
                return frames_from(queue)

            detector = fake_detector(tiny_manifest())
            stream = detector.stream(camera, color="rgb", policy=policy)
            for index in range(frames):
                queue.put(some_image(SETUP, index))
            thread, came = _read_in_thread(stream)
            assert opened.wait(10)
            wait_until(lambda: detector.stats().results == frames)  # noqa: B023 - waited for here
            stream.close()
            thread.join(10)
            assert came[frames:] == ["end"]
            assert not stream_threads()
            queue.put(some_image(SETUP, 7))
            assert (queue.qsize(), detector.stats().faults) == (1, {})


def test_a_closed_stream_leaves_a_queues_frames_to_the_next_one() -> None:
    detector = fake_detector(tiny_manifest())
    queue: SimpleQueue[Any] = SimpleQueue()
    queue.put(some_image(SETUP, 0))
    first = detector.stream(frames_from(queue), color="rgb")
    assert next(first).frame_id == 0
    first.close()
    assert not stream_threads()
    for index in range(1, 4):
        queue.put(Frame(some_image(SETUP, index), index))
    queue.put(None)
    assert [result.frame_id for result in detector.stream(frames_from(queue), color="rgb")] == [1, 2, 3]


def test_a_source_blocked_in_its_driver_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 2 s; it is a daemon, which does not keep the program from ending."""
    assert background._JOIN_TIMEOUT_S == 2
    monkeypatch.setattr(background, "_JOIN_TIMEOUT_S", 0.1)
    released = threading.Event()

    def camera() -> Iterator[Any]:
        yield some_image(SETUP)
        released.wait(30)

    stream = fake_detector(tiny_manifest()).stream(camera(), color="rgb")
    next(stream)
    began_s = time.monotonic()
    stream.close()
    left = [thread for thread in stream_threads() if thread.name == "edge-ad-capture"]
    closed_s = time.monotonic() - began_s
    released.set()
    assert closed_s < 10
    assert [thread.daemon for thread in left] == [True]
    left[0].join(10)
    assert not stream_threads()


def _waiting_camera(asked: threading.Event, released: threading.Event) -> Iterator[Any]:
    """One frame, then a trigger that does not come."""
    yield some_image(SETUP)
    asked.set()
    released.wait(30)


def _read_in_thread(stream: Stream) -> tuple[threading.Thread, list[object]]:
    """A thread that reads to the end, and what came: results, then the error or "end"."""
    came: list[object] = []

    def read() -> None:
        try:
            came.extend(stream)
            came.append("end")
        except EdgeAdError as error:
            came.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, came


@pytest.mark.parametrize("by", ["stream", "detector"])
def test_a_reader_that_waits_can_be_stopped(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop button: from another thread, while no frame comes."""
    monkeypatch.setattr(background, "_JOIN_TIMEOUT_S", 0.1)
    asked, released = threading.Event(), threading.Event()
    detector = fake_detector(tiny_manifest())
    stream = detector.stream(_waiting_camera(asked, released), color="rgb")
    thread, came = _read_in_thread(stream)
    asked.wait(10)
    wait_until(lambda: detector.stats().results == 1)
    stream.close() if by == "stream" else detector.close()
    thread.join(10)
    released.set()
    assert not thread.is_alive()
    if by == "stream":
        assert came[1:] == ["end"]
        assert next(stream, None) is None
    else:
        assert isinstance(came[1], DetectorClosedError)
        with pytest.raises(DetectorClosedError, match="closed while its stream was read") as caught:
            next(stream)
        assert caught.value is not came[1]  # a traceback of its own
    wait_until(lambda: not stream_threads())


def test_closing_a_detector_leaves_a_hung_engine_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stall's own error gets out of the ``with`` block."""
    monkeypatch.setattr(background, "_JOIN_TIMEOUT_S", 0.1)
    monkeypatch.setattr("edge_ad.runtime.tile_runner.CLOSE_TIMEOUT_S", 0.1)
    released = threading.Event()

    def inspect() -> None:
        with fake_detector(tiny_manifest()) as detector:
            _before_each_run(detector, lambda: released.wait(30))
            list(detector.stream(_frames(5), color="rgb", policy=FaultPolicy(stall_s=0.2)))

    with pytest.raises(StalledError):
        inspect()
    assert "the engine has not come back for 0.1 s and is left behind" in caplog.messages
    released.set()
    wait_until(lambda: not stream_threads())


HALF_READ = """
import sys
import edge_ad

def camera():
    try:
        while True:
            yield frame
    finally:
        print("released", flush=True)

import numpy as np
frame = np.zeros((46, 58, 3), np.uint8)
detector = edge_ad.load(sys.argv[1])
results = detector.stream(camera, color="rgb")
next(results)
sys.exit(3)
"""


def test_a_program_may_end_with_a_stream_half_read(tiny_bundle: Callable[..., Path]) -> None:
    ended = subprocess.run([sys.executable, "-c", HALF_READ, tiny_bundle()], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "released\n", "")


def test_a_frame_brings_what_its_camera_knows() -> None:
    source = [Frame(some_image(SETUP), 90), Frame(some_image(SETUP), "left-7", {"encoder": 12}), some_image(SETUP)]
    results = list(fake_detector(tiny_manifest()).stream([*source, Frame(some_image(SETUP))], color="rgb"))
    assert [(result.frame_id, result.info) for result in results] == [
        (90, None),
        ("left-7", {"encoder": 12}),
        (2, None),
        (3, None),
    ]
    np.testing.assert_array_equal(results[0].raw_map, results[2].raw_map)
    bad = list(
        fake_detector(tiny_manifest()).stream(
            [Frame(np.zeros((3, 3)), 5, "kept")], color="rgb", policy=FaultPolicy(frame="report")
        )
    )
    assert [(result.frame_id, result.info, result.verdict) for result in bad] == [(5, "kept", "error")]


def test_no_thread_before_the_first_result_is_asked_for() -> None:
    stream = fake_detector(tiny_manifest()).stream(_frames(3), color="rgb")
    assert not stream_threads()
    stream.close()


def test_bad_choices_are_told_at_once() -> None:
    detector = fake_detector(tiny_manifest())
    with pytest.raises(InputError, match="expected one of never, oldest, newest, but got 'some'"):
        detector.stream([], color="rgb", drop="some")
    with pytest.raises(InputError, match="queue_size: expected at least 1, but got 0"):
        detector.stream([], color="rgb", queue_size=0)
    with pytest.raises(ColorError, match="color: expected one of rgb, bgr, mono, rgba, bgra, but got 'gbr'"):
        detector.stream([], color="gbr")
    for bits in (7, 17):
        with pytest.raises(InputError, match=f"bits: expected 8 to 16, but got {bits}"):
            detector.stream([], color="mono", bits=bits)


class _VideoCapture:
    """As OpenCV's: read, not iterated over."""

    def __init__(self) -> None:
        self.released = False

    def release(self) -> None:
        self.released = True


WHAT = "expected an iterable of frames, but got"
NO_SOURCES = [
    (None, f"{WHAT} NoneType; for what OpenCV opens see `frames` of samples/opencv_loop.py"),
    (0, f"{WHAT} int;"),
    (_VideoCapture(), f"{WHAT} _VideoCapture;"),
    (SimpleQueue(), f"{WHAT} SimpleQueue; .* for a camera that calls back edge_ad.frames_from"),
    ("line.mp4", f"{WHAT} str;"),
    (Path("line.mp4"), f"{WHAT} [A-Za-z]+Path;"),
    (some_image(SETUP), f"{WHAT} a single one; call the detector with it"),
    (some_image(SETUP)[:, :, 0], f"{WHAT} a single one"),
    (Frame(some_image(SETUP)), f"{WHAT} a single one"),
]


@pytest.mark.filterwarnings("ignore:pathlib.Path.__enter__:DeprecationWarning")
@pytest.mark.parametrize(("source", "message"), NO_SOURCES)
def test_what_gives_no_frames_is_told_at_once(source: Any, message: str) -> None:
    """Before the first result is asked for, where it was given; with the first one, where it was opened."""
    detector = fake_detector(tiny_manifest())
    with pytest.raises(InputError, match=f"^source: {message}"):
        detector.stream(source, color="rgb")
    with pytest.raises(InputError, match=f"^what the source opened: {message}"):
        next(detector.stream(lambda: source, color="rgb"))
    assert getattr(source, "released", True)


def test_a_stack_of_frames_and_a_sequence_are_sources() -> None:
    class Sequence:
        def __getitem__(self, index: int) -> Any:
            return [*_frames(2)][index]

    detector = fake_detector(tiny_manifest())
    grey = np.stack([frame[:, :, 0] for frame in _frames(2)])
    stacks = [(np.stack([*_frames(2)]), "rgb"), (grey, "mono"), (grey[..., None], "mono")]
    for source, color in (*stacks, (Sequence(), "rgb")):
        assert len([*detector.stream(source, color=color)]) == 2  # type: ignore[arg-type]
