"""One task in a child process with bounded memory and time: what did it end in?

The parent has imported everything before it forks, so that a child costs milliseconds; it may not have used an engine
or torch yet, whose threads no child would inherit. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from edge_ad.errors import EdgeAdError

_M_ARENA_MAX = -8  # malloc.h


class Kind(StrEnum):
    """How a task ended."""

    REFUSED = "refused"  # in an error of ours
    ACCEPTED = "accepted"  # without an error
    UNTYPED = "untyped"  # in another error
    CRASHED = "crashed"  # the interpreter died
    HUNG = "hung"  # killed when its time was over


@dataclass(frozen=True)
class Ending:
    """How, in which error (its class), with which words, and how much memory the child held beyond its start."""

    kind: Kind
    error: str
    message: str
    grown_bytes: int


def run(task: Callable[[], object], *, memory_bytes: int, timeout_s: float) -> Ending:
    """Fork, run ``task`` with at most ``memory_bytes`` more than now, and kill it after ``timeout_s``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(task, writing, memory_bytes)
    os.close(writing)
    deadline = time.monotonic() + timeout_s
    said = b""
    hung = False
    while (left := deadline - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        if not (part := os.read(reading, 65536)):
            break
        said += part
    else:  # the time is over: before select, or in it
        hung = True
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status, _ = os.wait4(child, 0)
    if said:
        kind, error, message, grown_bytes = json.loads(said)
        return Ending(Kind(kind), error, message, grown_bytes)
    if hung:
        return Ending(Kind.HUNG, "", f"still running after {timeout_s} s", 0)
    return Ending(Kind.CRASHED, "", f"ended with {os.waitstatus_to_exitcode(status)}", 0)


def _child(task: Callable[[], object], writing: int, memory_bytes: int) -> None:
    """Never returns: no handler or buffer of the parent's may run twice."""
    start_bytes = _peak_bytes()
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)  # else threads that meet in malloc map 64 MiB each, up to a GiB
        limit = _mapped_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            task()
            ending = (Kind.ACCEPTED, "", "")
        except EdgeAdError as error:
            ending = (Kind.REFUSED, type(error).__name__, str(error)[:500])
        except BaseException as error:  # noqa: BLE001 - to tell, which is what this is for
            ending = (Kind.UNTYPED, type(error).__name__, traceback.format_exc()[-2000:])
        os.write(writing, json.dumps([*ending, _peak_bytes() - start_bytes]).encode())
    finally:
        os._exit(0)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
