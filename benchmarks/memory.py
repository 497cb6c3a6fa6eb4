"""Memory of this process, as the operating system counts it, and of the device, where its engine tells."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edge_ad.benchmarks import nvidia_probe
from edge_ad.runtime.processor import read_fields

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Resident memory of the process at four moments, and what the device holds; None where it cannot be read."""

    resident_before_load_bytes: int | None  # interpreter, numpy and edge_ad, no engine yet
    resident_loaded_bytes: int | None  # engine, compiled graphs and buffers of the batch-1 detector
    resident_peak_bytes: int | None  # highest until the end of the latency runs
    resident_peak_throughput_bytes: (
        int | None
    )  # highest until the end of the throughput runs; None where these were skipped
    device_bytes: int | None  # on the accelerator, after the latency runs


def resident_bytes() -> int | None:
    """Memory resident now (VmRSS); None except on Linux."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most memory that was resident since the process began; None on Windows."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return _status_bytes("VmHWM")


def device_bytes(device: str) -> int | None:
    """Memory held on ``device``, as the session reports it; None where no engine tells."""
    if nvidia_probe.knows(device):
        return nvidia_probe.memory_bytes(device)
    if device == "CPU" or not find_spec("openvino"):
        return None
    from edge_ad.benchmarks import openvino_probe

    return openvino_probe.device_memory_bytes(device)


def _status_bytes(field: str) -> int | None:
    value = read_fields(_STATUS).get(field)
    return int(value.split()[0]) * 1024 if value else None
