"""What of this machine's processor an engine does not consider when it picks its default precision."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache  # every graph asks, and the file grows with the number of cores
def bf16_is_slow(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this is an Intel processor without AMX, whose bf16 is no faster than float32; False where none tells.

    Products of bf16 are then half as many per cycle as an engine expects of them: EfficientAD took 1.8 times as long as
    in float32 (docs/performance.md). AMD's processors gain from bf16 without AMX.
    """
    found = read_fields(cpuinfo)
    return found.get("vendor_id") == "GenuineIntel" and "amx_bf16" not in found.get("flags", "").split()


def usable_cpus() -> int:
    """CPUs this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_fields(path: Path) -> dict[str, str]:
    """The ``name: value`` lines of a file such as those in /proc, the first of each name; none without the file."""
    found: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found
