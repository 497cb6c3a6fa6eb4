"""This machine's processor: which of its CPUs a process has, and what no engine considers when it picks a precision."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
TASKS = Path("/proc/self/task")  # of Linux: a folder per thread of this process


@cache  # every graph asks, and the file grows with the number of cores
def bf16_is_slow(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this is an Intel processor without AMX, whose bf16 is no faster than float32; False where none tells.

    Products of bf16 are then half as many per cycle as an engine expects of them: EfficientAD took 1.8 times as long as
    in float32 (docs/performance.md). AMD's processors gain from bf16 without AMX.
    """
    found = read_fields(cpuinfo)
    return found.get("vendor_id") == "GenuineIntel" and "amx_bf16" not in found.get("flags", "").split()


def usable_cpus() -> int:
    """Number of CPUs that this process may be scheduled on."""
    return len(_affinity()) or os.cpu_count() or 1


def cpu_shares(count: int) -> list[set[int]]:
    """The CPUs of this process dealt to ``count`` of its children, as `stay_on` takes them.

    Every share has the same number, at least one; a CPU is in several where there are more children than CPUs. Empty
    shares where the system does not tell.

    >>> from unittest import mock
    >>> with mock.patch("os.sched_getaffinity", lambda pid: {0, 1, 2, 5, 7}, create=True):
    ...     cpu_shares(2), cpu_shares(6)
    ([{0, 1}, {2, 5}], [{0}, {1}, {2}, {5}, {7}, {0}])
    """
    cpus = sorted(_affinity())
    if not cpus:
        return [set()] * count
    size = max(1, len(cpus) // count)
    return [{cpus[(start + offset) % len(cpus)] for offset in range(size)} for start in range(0, count * size, size)]


def stay_on(cpus: set[int]) -> None:
    """Schedule this process on ``cpus`` alone: engines start as many threads as it may use. Of no CPUs: as it was."""
    if not cpus:
        return
    os.sched_setaffinity(0, cpus)  # of the calling thread, and of those that it starts from now on
    for task in TASKS.iterdir() if TASKS.exists() else ():  # libraries start theirs when they are imported
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(task.name), cpus)


def _affinity() -> set[int]:
    # The main thread's: 0 would ask for the calling thread's own, which a program may have pinned
    return os.sched_getaffinity(os.getpid()) if hasattr(os, "sched_getaffinity") else set()


def read_fields(path: Path) -> dict[str, str]:
    """The ``name: value`` lines of a file such as those in /proc, the first of each name; none without the file."""
    found: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found
