from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import closing

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

    with closing(Workers(count, "edge-ad-test")) as workers:
        futures = [workers.submit(lambda number=number: work(number)) for number in range(20)]
        assert [future.result() for future in futures] == [number * number for number in range(20)]
    assert len(by) <= count
    assert sorted(begun) == list(range(20))
    assert count > 1 or begun == sorted(begun)
    assert not any(thread.is_alive() for thread in by)


def test_idle_threads_are_used_before_new_ones_begin():
    with closing(Workers(3, "edge-ad-test")) as workers:
        for _ in range(5):
            (thread,) = {workers.submit(threading.current_thread).result()}
            while not workers._idle._value:
                time.sleep(0.001)
    assert len(workers._threads) == 1
    assert thread.name == "edge-ad-test"


def test_an_error_is_its_own_results_alone():
    def fail():
        raise SystemExit("no")

    with closing(Workers(1, "edge-ad-test")) as workers:
        failing, fine = workers.submit(fail), workers.submit(lambda: 3)
        with pytest.raises(SystemExit, match="no"):
            failing.result()
        assert fine.result() == 3


def test_what_has_not_begun_is_cancelled():
    begun, go = threading.Event(), threading.Event()
    workers = Workers(1, "edge-ad-test")

    def until_closed():
        begun.set()
        while not second.cancelled():
            time.sleep(0.001)
        return True

    second = Future()
    first = workers.submit(until_closed)
    begun.wait(10)
    second = workers.submit(go.clear)
    workers.close()  # waits for the first
    assert first.result()
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(go.set)
    workers.close()


def test_who_lets_go_of_it_leaves_no_thread():
    workers = Workers(2, "edge-ad-dropped")
    assert workers.submit(lambda: 3).result() == 3
    (thread,) = workers._threads
    del workers
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_thread_that_cannot_be_started_is_told(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with closing(Workers(1, "edge-ad-test")) as workers, pytest.raises(RuntimeError, match="can't start new thread"):
        workers.submit(gc.collect)
    assert not workers._threads


NEVER_CLOSED = """
import threading, time
from edge_ad import workers

def first():
    begun.set()
    while not workers._under_way._is_over:
        time.sleep(0.001)
    print("first", pool.submit(lambda: "of the first").result(), flush=True)

def outside():
    try:
        workers._under_way.begin()
    except SystemExit:
        print("none begins", flush=True)

begun = threading.Event()
pool = workers.Workers(2, "left")
pool.submit(first)
begun.wait()
pool.submit(lambda: print("second", flush=True)).result()
workers.finish()
late = threading.Thread(target=outside)
late.start()
late.join()
print("main", pool.submit(lambda: "may").result())
"""


def test_the_end_of_the_program_waits_for_what_is_under_way_and_what_that_waits_for():
    ended = subprocess.run([sys.executable, "-c", NEVER_CLOSED], capture_output=True, text=True, timeout=30, check=True)
    assert (ended.stdout, ended.stderr) == ("second\nfirst of the first\nnone begins\nmain may\n", "")
