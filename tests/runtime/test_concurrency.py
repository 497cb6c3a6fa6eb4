"""Threads, many detectors, fork and spawn, with real engines: each works, or fails with an error that says why."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import some_image, tiny_setup

import edge_ad
from edge_ad.bundle.manifest import Format
from edge_ad.errors import DetectorClosedError, ForkedError
from edge_ad.runtime.detector import Detector

Write = Callable[..., Path]
IMAGES = [some_image(tiny_setup(), seed) for seed in range(8)]


def _maps(detector: Detector) -> list[Any]:
    return [detector(image, color="rgb").raw_map for image in IMAGES]


@pytest.mark.parametrize("graph_format", Format)
def test_calls_and_streams_of_one_detector_from_many_threads(tiny_bundle: Write, graph_format: Format) -> None:
    with edge_ad.load(tiny_bundle(graph_format=graph_format), precision="f32") as detector:
        expected = _maps(detector)

        def work(index: int) -> list[Any]:
            if index % 2:
                return _maps(detector)
            return [result.raw_map for result in detector.stream(IMAGES, color="rgb")]

        with ThreadPoolExecutor(8) as pool:
            for maps in pool.map(work, range(24)):
                np.testing.assert_array_equal(maps, expected)
        stats = detector.stats()
    assert (stats.captured, stats.results, stats.pending) == (12 * 8, 12 * 8, 0)


@pytest.mark.parametrize("graph_format", Format)
def test_many_detectors_at_once(tiny_bundle: Write, graph_format: Format) -> None:
    """Loaded, used and closed by four threads, each at its own pace."""
    bundle = tiny_bundle(graph_format=graph_format)

    def work(index: int) -> list[Any]:
        with edge_ad.load(bundle, precision="f32") as detector:
            return _maps(detector)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(work, range(8))
    for maps in others:
        np.testing.assert_array_equal(maps, first)


def test_a_detector_closed_by_another_thread(tiny_bundle: Write) -> None:
    """The call in progress ends, the next one says why not."""
    detector = edge_ad.load(tiny_bundle())
    running = threading.Barrier(5)
    errors: list[str] = []

    def work() -> None:
        detector(IMAGES[0], color="rgb")
        running.wait()
        try:
            while True:
                detector(IMAGES[0], color="rgb")
        except DetectorClosedError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait()
    detector.close()
    for thread in threads:
        thread.join(10)
    assert errors == ["this detector is closed; load the bundle again"] * 4


FORK = """
import itertools, multiprocessing, sys, threading, time
import edge_ad
from edge_ad.runtime import openvino_session
from edge_ad.errors import ForkedError
from edge_ad.imaging import read_image

bundle, *cache = sys.argv[1:]
cache = cache[0] if cache else None
image = read_image(bundle + "/golden/anomalous.png")

def hold(lock, taken):
    with lock:
        taken.set()
        time.sleep(0.2)

def use(detector, results):
    try:
        results.put(detector(image, color="rgb").raw_score)
    except ForkedError as error:
        results.put(str(error))
    detector.close()

def read(stream, results):
    try:
        results.put(next(stream).raw_score)
    except ForkedError as error:
        results.put(str(error))
    stream.close()

def load(*arguments):
    *cache, results = arguments
    with edge_ad.load(bundle, precision="f32", cache_dir=cache[0] if cache else None) as detector:
        results.put(detector(image, color="rgb").raw_score)

def ask(context, work, *arguments):
    results = context.SimpleQueue()
    child = context.Process(target=work, args=(*arguments, results))
    child.start()
    child.join(30)
    child.kill()  # where it hangs
    assert child.exitcode == 0, child.exitcode
    return results.get()

if __name__ == "__main__":
    detector = edge_ad.load(bundle, precision="f32")
    expected = detector(image, color="rgb").raw_score
    fork, spawn = (multiprocessing.get_context(how) for how in ("fork", "spawn"))
    detector.runner._turn.take()  # as a thread in the midst of a call has it
    message = ask(fork, lambda results: use(detector, results))
    detector.runner._turn.leave()
    assert message.startswith("this detector was loaded before the process was forked"), message
    stream = detector.stream(itertools.repeat(image), color="rgb")
    assert next(stream).raw_score == expected
    with stream._lock:  # likewise
        message = ask(fork, lambda results: read(stream, results))
    assert message.startswith("this stream was made before the process was forked"), message
    assert next(stream).raw_score == expected  # the child's close was not ours
    stream.close()
    assert ask(fork, load) == ask(spawn, load) == expected
    if cache:  # a graph is being compiled while the process is forked
        taken = threading.Event()
        threading.Thread(target=lambda: hold(openvino_session._CACHE_LOCK, taken)).start()
        taken.wait()
        assert ask(fork, load, cache) == expected
    try:
        spawn.Process(target=use, args=(detector, None)).start()
    except ForkedError as error:
        print(error)
    assert detector(image, color="rgb").raw_score == expected  # the child's close was not ours
    print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.parametrize("graph_format", Format)
def test_fork_and_spawn(tiny_bundle: Write, tmp_path: Path, graph_format: Format) -> None:
    (tmp_path / "program.py").write_text(FORK)
    command = [sys.executable, str(tmp_path / "program.py"), str(tiny_bundle(graph_format=graph_format))]
    command += [str(tmp_path / "cache")] if graph_format is Format.OPENVINO else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "a detector cannot be sent to another process; load the bundle there",
        "done",
    ]


def test_no_pickle(tiny_bundle: Write) -> None:
    with edge_ad.load(tiny_bundle()) as detector, pytest.raises(ForkedError, match="cannot be sent to another process"):
        pickle.dumps(detector)


DAEMON = """
import atexit, sys, threading, time
import edge_ad
from edge_ad import workers
from edge_ad.imaging import read_image
from edge_ad.runtime.detector import _end

budget = sys.argv[2] if sys.argv[2:] else None
detector = edge_ad.load(sys.argv[1], threads=1, memory_budget=budget)
image = read_image(sys.argv[1] + "/golden/anomalous.png")
calls = []

def inspect():
    while True:
        detector(image, color="rgb")
        calls.append(1)

for _ in range(2):
    threading.Thread(target=inspect, daemon=True).start()
while len(calls) < 20:
    time.sleep(0.005)
left = lambda: workers._under_way._blocks
atexit.unregister(_end)
_end()
print("some" if left() else "none", "left behind")
"""


@pytest.mark.parametrize("graph_format", Format)
def test_a_program_ends_while_a_daemon_thread_inspects(tiny_bundle: Write, graph_format: Format) -> None:
    """Python stops such a thread inside of the engine, which aborted the process (11 of 12 times)."""
    bundle = tiny_bundle(graph_format=graph_format)
    for budget in ((), (), ("100KB",)):
        ended = subprocess.run(
            [sys.executable, "-c", DAEMON, str(bundle), *budget],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "none left behind\n", "")


ONLY_THREADS = """
import sys, threading
import edge_ad
from edge_ad.imaging import read_image

def inspect():
    threading.main_thread().join()
    image = read_image(sys.argv[1] + "/golden/anomalous.png")
    for budget in (None, "100KB"):
        with edge_ad.load(sys.argv[1], memory_budget=budget) as detector:
            print([result.verdict.value for result in detector.stream([image] * 2, color="rgb")])

threading.Thread(target=inspect).start()
"""


def test_a_program_whose_main_thread_has_ended(tiny_bundle: Write) -> None:
    command = [sys.executable, "-c", ONLY_THREADS, str(tiny_bundle())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == (2 * "['normal', 'normal']\n", "")
