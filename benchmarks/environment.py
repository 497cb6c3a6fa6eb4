"""The machine a benchmark ran on: what two reports must share before their numbers may be compared."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from edge_ad.benchmarks import nvidia_probe
from edge_ad.bundle.manifest import Format
from edge_ad.runtime.devices import DeviceInfo, listed_as
from edge_ad.runtime.processor import CPUINFO, read_fields, usable_cpus
from edge_ad.runtime.sessions import ENGINES, import_engine

Found = TypeVar("Found")

PACKAGES = ("edge-ad", "numpy", "opencv-python-headless", "openvino", "onnxruntime", "onnxruntime-gpu")
# As Linux names them in /proc/cpuinfo: x86 first, then Arm
MATRIX_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
BUSY_LOAD = 0.5  # of the CPUs

_CPUINFO = CPUINFO
_MEMINFO = Path("/proc/meminfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Environment:
    """Facts of the machine; None where it does not tell."""

    time_utc: str  # ISO 8601
    cpu: str
    cpu_flags: tuple[str, ...]  # those of `MATRIX_FLAGS` it has
    logical_cpus: int
    usable_cpus: int  # the process's affinity
    cpu_quota: float | None  # CPUs' worth of time a container may use; None: no limit
    governor: str | None
    load_average: float | None  # over the last minute, before the benchmark
    memory_bytes: int | None
    os: str
    python: str
    versions: dict[str, str]
    device: str  # as the engine names it
    device_name: str  # its full name
    driver: str | None

    def warnings(self) -> tuple[str, ...]:
        """Reasons why this machine does not give its best, one sentence each."""
        found = []
        if self.governor not in (None, "performance"):
            found.append(
                f"the CPU governor is {self.governor!r}, not 'performance'; "
                "set it: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
            )
        if self.load_average is not None and self.load_average > BUSY_LOAD * self.usable_cpus:
            found.append(f"the load average was {self.load_average:.2f} before the benchmark: other work was running")
        if self.cpu_quota is not None and self.cpu_quota < self.usable_cpus:
            found.append(
                f"the container may use {self.cpu_quota:g} of {self.usable_cpus} CPUs and is paused beyond that; "
                "give it whole CPUs (docker --cpuset-cpus)"
            )
        return tuple(found)


def found_by(probe: Callable[[], Found]) -> Found | None:
    """What ``probe`` finds; None where the engine it asks is missing or broken.

    Facts beside the figures may come from an engine that did not run: the figures are not thrown away for them.
    """
    try:
        return probe()
    except Exception:  # noqa: BLE001 - a broken engine may raise anything, as early as when it is imported
        return None


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def read_environment(device: str, load: float | None) -> Environment:
    """The environment of ``device``, as the session reports it, with the load average taken before the runs."""
    cpuinfo = read_fields(_CPUINFO)
    return Environment(
        time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpuinfo.get("model name") or cpuinfo.get("Model") or platform.processor() or platform.machine(),
        cpu_flags=_matrix_flags((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        cpu_quota=_cpu_quota(_text(_QUOTA)),
        governor=_text(_GOVERNOR),
        load_average=load,
        memory_bytes=_memory_bytes(),
        os=platform.platform(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=_versions(),
        device=device,
        device_name=_device_name(device),
        driver=_driver(device),
    )


def _matrix_flags(present: Iterable[str]) -> tuple[str, ...]:
    known = set(present)
    return tuple(flag for flag in MATRIX_FLAGS if flag in known)


def _cpu_quota(cpu_max: str | None) -> float | None:
    """CPUs' worth of a cgroup-2 ``cpu.max``.

    >>> _cpu_quota("150000 100000"), _cpu_quota("max 100000"), _cpu_quota(None)
    (1.5, None, None)
    """
    if cpu_max is None or cpu_max.startswith("max"):
        return None
    quota_us, period_us = cpu_max.split()
    return int(quota_us) / int(period_us)


def _memory_bytes() -> int | None:
    total = read_fields(_MEMINFO).get("MemTotal")
    return int(total.split()[0]) * 1024 if total else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    if nvidia_probe.knows(device):
        return nvidia_probe.full_name(device) or device
    found = [info for graph_format in ENGINES for info in found_by(partial(_devices, graph_format)) or ()]
    name = listed_as(device, [info.name for info in found])
    return next((info.full_name for info in found if info.name == name), device)


def _driver(device: str) -> str | None:
    if nvidia_probe.knows(device):
        return nvidia_probe.driver(device)
    return found_by(lambda: _openvino_driver(device))


def _devices(graph_format: Format) -> list[DeviceInfo]:
    found: list[DeviceInfo] = import_engine(graph_format).devices()
    return found


def _openvino_driver(device: str) -> str | None:
    from edge_ad.benchmarks import openvino_probe

    return openvino_probe.driver(device)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else None
