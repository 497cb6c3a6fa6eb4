"""Benchmark a bundle: load, time, weigh, compare with the machine's limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import edge_ad
from edge_ad.benchmarks import environment, memory
from edge_ad.benchmarks.ceilings import compare, executed_precisions, measure_ceilings
from edge_ad.benchmarks.frame import benchmark_frame
from edge_ad.benchmarks.memory import Memory
from edge_ad.benchmarks.protocol import (
    ITERATIONS,
    WARMUP,
    Image,
    Schedule,
    Throughput,
    measure_latency,
    measure_throughput,
    throughput_batch,
)
from edge_ad.benchmarks.report import SCHEMA_VERSION, BenchmarkReport, Config, bundle_facts, float_parts
from edge_ad.benchmarks.timing import time_once
from edge_ad.bundle.files import MANIFEST_NAME, read_manifest, sha256_file
from edge_ad.progress import Progress, no_progress, per_round
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.session import ExecutionPrecision


def run_benchmark(
    bundle: Path,
    device: str = "CPU",
    *,
    precision: ExecutionPrecision = ExecutionPrecision.AUTO,
    threads: int | None = None,
    require_signature: Path | None = None,
    memory_budget: str | None = None,
    cache_dir: Path | None = None,
    warmup: int = WARMUP,
    iterations: int = ITERATIONS,
    batch: int | None = None,
    throughput_iterations: int | None = None,
    progress: Progress = no_progress,
) -> BenchmarkReport:
    """Run the EfficientAD protocol on ``bundle``; see `edge_ad.benchmarks.protocol` for what is timed.

    Args:
        bundle: the bundle folder.
        device, precision, threads, require_signature, memory_budget, cache_dir: see `edge_ad.load`.
        warmup, iterations: runs at batch 1; others than the protocol's mark the report as shortened.
        batch: images per throughput run, the protocol's where None; 0 measures no throughput.
        throughput_iterations: timed throughput runs; as many as ``iterations`` where None.

    Raises:
        InputError: no run would be timed.
        The errors of `edge_ad.load`, and `InferenceError`.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle, require_signature=require_signature)
    schedule = Schedule(
        warmup=warmup,
        iterations=iterations,
        throughput_batch=throughput_batch(manifest.method.name) if batch is None else batch,
        throughput_iterations=iterations if throughput_iterations is None else throughput_iterations,
    )
    load_average, before_load_bytes = environment.load_average(), memory.resident_bytes()
    open_detector = partial(
        edge_ad.load,
        bundle,
        device,
        precision=precision,
        threads=threads,
        require_signature=require_signature,
        memory_budget=memory_budget,
        cache_dir=cache_dir,
    )

    detector, load_ms = _timed(open_detector)
    with detector:
        image, frame = benchmark_frame(bundle, manifest)
        first_inference_ms = time_once(lambda: detector.raw(image[None]))
        loaded_bytes = memory.resident_bytes()
        latency = measure_latency(detector, image, schedule, per_round(progress, warmup + iterations, "latency"))
        peak_bytes = memory.peak_resident_bytes()
        device_bytes = memory.device_bytes(detector.device)
        device_name, precisions = detector.device, tuple(session.precision for session in detector.sessions)
        in_words = float_parts(detector)
    throughput, peak_throughput_bytes = _throughput(open_detector, image, schedule, progress)

    progress(0, 1, "ceilings")
    executed = executed_precisions(manifest, precisions)
    ceilings = measure_ceilings(device_name, dict.fromkeys(executed), threads)
    progress(1, 1, "ceilings")
    return BenchmarkReport(
        schema_version=SCHEMA_VERSION,
        protocol=schedule.protocol(manifest.method.name),
        config=Config(
            bundle.resolve().name,
            device,
            str(precision),
            threads,
            schedule,
            frame,
            memory_budget,
            has_cache=cache_dir is not None,
        ),
        environment=environment.read_environment(device_name, load_average),
        bundle=bundle_facts(manifest, sha256_file(bundle / MANIFEST_NAME), (bundle / MANIFEST_NAME).stat().st_size),
        executed=in_words,
        load_ms=load_ms,
        first_inference_ms=first_inference_ms,
        latency=latency,
        throughput=throughput,
        memory=Memory(before_load_bytes, loaded_bytes, peak_bytes, peak_throughput_bytes, device_bytes),
        ceilings=ceilings,
        achieved=compare(manifest, executed, ceilings, latency.bare.median_ms),
    )


def _timed(open_detector: Callable[[], Detector]) -> tuple[Detector, float]:
    opened: list[Detector] = []
    load_ms = time_once(lambda: opened.append(open_detector()))
    return opened[0], load_ms


def _throughput(
    open_detector: Callable[..., Detector], image: Image, schedule: Schedule, progress: Progress
) -> tuple[Throughput | None, int | None]:
    """The throughput and the peak of memory after it; None, None where it is skipped."""
    if not schedule.throughput_batch:
        return None, None
    after_round = per_round(progress, schedule.throughput_warmup + schedule.throughput_iterations, "throughput")
    with open_detector(batch_size=schedule.throughput_batch) as detector:
        throughput = measure_throughput(detector, image, schedule, after_round)
    return throughput, memory.peak_resident_bytes()
