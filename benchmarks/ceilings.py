"""What this machine can do at most, measured, and how near a bundle comes to it.

No data sheet: peak figures of a CPU at unknown clocks say little. Compute is measured by products of large matrices,
in the engine itself where it can (on the device, at the precision that ran), else by numpy; memory by a large copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edge_ad.benchmarks import nvidia_probe
from edge_ad.benchmarks.environment import found_by
from edge_ad.benchmarks.timing import time_interleaved
from edge_ad.bundle.manifest import Manifest, Precision
from edge_ad.runtime.processor import usable_cpus

_SIDE = 1024
_COPY_BYTES = 64 * 2**20  # beyond the last-level cache of most machines, within the memory of all
_RUNS = 8


@dataclass(frozen=True)
class ComputeCeiling:
    """The fastest matrix product measured; multiplications and additions counted apart."""

    precision: str
    gflops_per_s: float  # integer operations at int8
    source: str  # what measured it


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the device; empty and None where nothing can measure it."""

    compute: tuple[ComputeCeiling, ...]
    copy_gb_per_s: float | None  # 1e9 bytes read plus 1e9 bytes written count 2

    def of(self, precision: str) -> ComputeCeiling | None:
        """The ceiling of a precision: the engine's own, which comes first, else numpy's."""
        return next((ceiling for ceiling in self.compute if ceiling.precision == precision), None)


@dataclass(frozen=True)
class Achieved:
    """The least time the graphs could take by the ceilings, against the bare time they took.

    The compute bound adds up every graph's operations over the ceiling of its precision. The memory bound reads every
    graph once per image: caches may help with the rest, nothing helps with that. The larger of the two counts.
    """

    compute_bound_ms: float | None  # None: no ceiling for one of the precisions
    memory_bound_ms: float | None
    bare_ms: float  # median
    gflops_per_s: float  # achieved
    ceiling_percent: float | None  # larger bound / bare time
    ceiling: str  # which one, in words


def measure_ceilings(device: str, precisions: Iterable[str], threads: int | None) -> Ceilings:
    """Measure the ceilings of ``device`` (as the session reports it), for a few hundred milliseconds.

    Args:
        precisions: those that ran: ``f32``, ``bf16``, ``f16``, ``int8``.
        threads: as the sessions were opened with; numpy's product takes all CPUs whatever this says.
    """
    precisions = tuple(precisions)
    compute = [
        *(found_by(lambda: _openvino_ceilings(device, precisions, threads)) or ()),
        *(found_by(lambda: _nvidia_ceilings(device, precisions)) or ()),
    ]
    if device != "CPU":
        return Ceilings(tuple(compute), None)
    compute.append(ComputeCeiling("f32", _matmul_flops_per_s() / 1e9, "numpy matrix product"))
    return Ceilings(tuple(compute), _copy_bytes_per_s(threads or usable_cpus()) / 1e9)


def _openvino_ceilings(device: str, precisions: tuple[str, ...], threads: int | None) -> list[ComputeCeiling]:
    from edge_ad.benchmarks import openvino_probe

    found = []
    for precision in precisions if openvino_probe.knows(device) else ():
        with suppress(RuntimeError):  # the device does not compute in it
            rate = openvino_probe.matmul_flops_per_s(device, precision, threads) / 1e9
            found.append(ComputeCeiling(precision, rate, f"{openvino_probe.ENGINE} matrix product on {device}"))
    return found


def _nvidia_ceilings(device: str, precisions: tuple[str, ...]) -> list[ComputeCeiling]:
    if not nvidia_probe.knows(device):
        return []
    from edge_ad.benchmarks import onnxruntime_probe

    return [
        ComputeCeiling(
            precision,
            onnxruntime_probe.matmul_flops_per_s(device, precision) / 1e9,
            f"{onnxruntime_probe.ENGINE} matrix product on {device}",
        )
        for precision in precisions
        if onnxruntime_probe.knows(precision)
    ]


def executed_precisions(manifest: Manifest, session_precisions: Iterable[str]) -> tuple[str, ...]:
    """Per graph of the manifest what it ran in: int8 where it is quantised, else what its session reports."""
    return tuple(
        "int8" if graph.precision is Precision.INT8 else precision
        for graph, precision in zip(manifest.in_running_order, session_precisions, strict=True)
    )


def compare(manifest: Manifest, precisions: Iterable[str], ceilings: Ceilings, bare_ms: float) -> Achieved:
    """How near ``bare_ms``, the median bare time of one image, comes to the ceilings.

    Args:
        precisions: per graph, see `executed_precisions`.
    """
    flops_of: dict[str, int] = {}
    for graph, precision in zip(manifest.in_running_order, precisions, strict=True):
        flops_of[precision] = flops_of.get(precision, 0) + manifest.runs_per_image(graph) * graph.flops
    limits = {precision: ceilings.of(precision) for precision in flops_of}
    known = {precision: limit for precision, limit in limits.items() if limit}
    compute_ms = memory_ms = None
    if len(known) == len(limits):
        compute_ms = sum(flops_of[name] / (limit.gflops_per_s * 1e6) for name, limit in known.items())
    if ceilings.copy_gb_per_s is not None:
        run = [graph for graph in manifest.graphs if manifest.runs_per_image(graph)]
        graph_bytes = sum(graph.size_bytes for graph in run)
        memory_ms = graph_bytes / (ceilings.copy_gb_per_s * 1e6)
    percent = None if compute_ms is None else 100 * max(compute_ms, memory_ms or 0.0) / bare_ms
    return Achieved(
        compute_bound_ms=compute_ms,
        memory_bound_ms=memory_ms,
        bare_ms=bare_ms,
        gflops_per_s=manifest.flops_per_image / (bare_ms * 1e6),
        ceiling_percent=percent,
        ceiling=_ceiling_in_words(limits, compute_ms, memory_ms),
    )


def _ceiling_in_words(
    limits: dict[str, ComputeCeiling | None], compute_ms: float | None, memory_ms: float | None
) -> str:
    if missing := [precision for precision, limit in limits.items() if limit is None]:
        return f"none: nothing here measures {', '.join(missing)}"
    if memory_ms is not None and compute_ms is not None and memory_ms > compute_ms:
        return "numpy copy of a large array"
    return "; ".join(f"{limit.precision}: {limit.source}" for limit in limits.values() if limit)


def _matmul_flops_per_s() -> float:
    a = np.random.default_rng(0).uniform(-1, 1, (_SIDE, _SIDE)).astype(np.float32)
    out = np.empty_like(a)
    best_ms = time_interleaved({"matmul": lambda: np.matmul(a, a, out=out)}, 1, _RUNS)["matmul"].min_ms
    return 2 * _SIDE**3 / (best_ms / 1000)


def _copy_bytes_per_s(threads: int) -> float:
    """Bytes read plus bytes written per second by ``threads`` at once: one alone does not fill a memory bus."""
    sources = np.array_split(np.ones(_COPY_BYTES, np.uint8), threads)
    targets = np.array_split(np.empty(_COPY_BYTES, np.uint8), threads)
    with ThreadPoolExecutor(threads) as pool:
        best_ms = time_interleaved({"copy": lambda: list(pool.map(np.copyto, targets, sources))}, 1, _RUNS)[
            "copy"
        ].min_ms
    return 2 * _COPY_BYTES / (best_ms / 1000)
