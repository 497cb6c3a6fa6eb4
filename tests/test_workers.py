from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from edge_ad.workers import Workers


@pytest.mark.parametrize("count", [1, 3])
def test_work_is_done_in_order_by_a_few_threads(count):
    begun, by = [], set()

    def work(number):
        begun.append(number)
        by.add(threading.current_thread())
        time.sleep(0.002)
        return number * number

    with Workers(count, "edge-ad-test") as workers:
        futures = [workers.submit(lambda number=number: work(number)) for number in range(20)]
        assert [future.result() for future in futures] == [number * number for number in range(20)]
    assert len(by) == count
    assert max(abs(place - number) for place, number in enumerate(begun)) < count
    assert not any(thread.is_alive() for thread in by)


def test_idle_threads_are_used_before_new_ones_begin():
    with Workers(3, "edge-ad-test") as workers:
        for _ in range(5):
            (thread,) = {workers.submit(threading.current_thread).result()}
            while not workers._idle._value:
                time.sleep(0.001)
    assert len(workers._threads) == 1
    assert thread.name == "edge-ad-test"


def test_an_error_is_its_own_results_alone():
    def fail():
        raise SystemExit("no")

    with Workers(1, "edge-ad-test") as workers:
        failing, fine = workers.submit(fail), workers.submit(lambda: 3)
        with pytest.raises(SystemExit, match="no"):
            failing.result()
        assert fine.result() == 3


def test_what_has_not_begun_is_cancelled():
    begun, go = threading.Event(), threading.Event()
    workers = Workers(1, "edge-ad-test")
    first = workers.submit(lambda: (begun.set(), go.wait(10)))
    second = workers.submit(go.clear)
    begun.wait(10)
    threading.Timer(0.05, go.set).start()
    workers.close()  # waits for the first
    assert first.done()
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(go.set)
    workers.close()


NEVER_CLOSED = """
import threading, time
from edge_ad.workers import Workers

workers = Workers(1, "left")
begun = threading.Event()
workers.submit(lambda: (begun.set(), time.sleep(0.3), print("done", flush=True)))
workers.submit(lambda: print("too late", flush=True))
begun.wait()
import atexit, sys
from edge_ad import workers
atexit.register(workers.finish)
"""


def test_the_end_of_the_program_waits_for_what_is_under_way_alone():
    ended = subprocess.run([sys.executable, "-c", NEVER_CLOSED], capture_output=True, text=True, timeout=30, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
