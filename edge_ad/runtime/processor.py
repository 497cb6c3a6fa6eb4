"""What of this machine's processor its engine does not weigh."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def bf16_is_slow() -> bool:
    """Whether this is an Intel processor without AMX, whose bf16 is no faster than float32; False where none tells.

    Products of bf16 are then half as many per cycle as an engine expects of them: EfficientAD took 1.8 times as long as
    in float32 (docs/results.md). AMD's processors gain from bf16 without AMX.
    """
    if not CPUINFO.exists():
        return False
    lines = (line.partition(":") for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines())
    found = {name.strip(): value.split() for name, _, value in lines}
    return found.get("vendor_id") == ["GenuineIntel"] and "amx_bf16" not in found.get("flags", ())
