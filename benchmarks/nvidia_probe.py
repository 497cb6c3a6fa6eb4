"""What NVIDIA's driver tells of a GPU through its tool nvidia-smi; every answer is None where that is not there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

_DEVICE = re.compile(r"(?:CUDA|TENSORRT)(?::(\d+))?")
_SECONDS = 10


def knows(device: str) -> bool:
    """Whether ``device``, as a session reports it, is one of NVIDIA's."""
    return _DEVICE.fullmatch(device) is not None


def full_name(device: str) -> str | None:
    """As the maker calls it."""
    return _first(_query("--query-gpu=name", device))


def driver(device: str) -> str | None:
    """Version of the driver."""
    return _first(_query("--query-gpu=driver_version", device))


def memory_bytes(device: str) -> int | None:
    """Memory this process holds there; None also in a container that numbers processes for itself."""
    for line in _query("--query-compute-apps=pid,used_memory", device):
        pid, _, mebibytes = line.partition(", ")
        if pid == str(os.getpid()) and mebibytes.isdigit():
            return int(mebibytes) * 2**20
    return None


def _query(what: str, device: str) -> list[str]:
    match, tool = _DEVICE.fullmatch(device), shutil.which("nvidia-smi")
    if not match or not tool:
        return []
    command = [tool, what, "--format=csv,noheader,nounits", "-i", match[1] or "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _first(lines: list[str]) -> str | None:
    return lines[0].strip() if lines else None
