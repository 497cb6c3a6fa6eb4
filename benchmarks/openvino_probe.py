"""What only OpenVINO can tell: its driver, its device's memory, and how fast it multiplies matrices there.

Beside `onnxruntime_probe`, the only module of this room that imports an engine.
"""

from __future__ import annotations

import numpy as np

from edge_ad.benchmarks.timing import time_interleaved
from edge_ad.runtime.devices import listed_as
from edge_ad.runtime.openvino_session import core
from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import openvino as ov
    from openvino import opset13 as ops

ENGINE = "OpenVINO"
_SIDE = 1024  # a square of it in f32 is 4 MiB: compute, not memory, decides
_CHAIN = 4  # products per run, so that handing in and out is small beside them
_RUNS = 8


def driver(device: str) -> str | None:
    """Version of the device's driver; None where OpenVINO does not tell."""
    return str(core().get_property(device, "NPU_DRIVER_VERSION")) if _tells(device, "NPU_DRIVER_VERSION") else None


def device_memory_bytes(device: str) -> int | None:
    """Memory that this process (GPU) or any process (NPU) holds on the device; None where OpenVINO does not tell."""
    if _tells(device, "GPU_MEMORY_STATISTICS"):
        return sum(int(size) for size in core().get_property(device, "GPU_MEMORY_STATISTICS").values())
    if _tells(device, "NPU_DEVICE_ALLOC_MEM_SIZE"):
        return int(core().get_property(device, "NPU_DEVICE_ALLOC_MEM_SIZE"))
    return None


def knows(device: str) -> bool:
    """Whether OpenVINO runs on ``device``."""
    return listed_as(device, core().available_devices) is not None


def matmul_flops_per_s(device: str, precision: str, threads: int | None) -> float:
    """Multiplications and additions per second, counted apart, in products of square matrices; the best of a few runs.

    Args:
        device: as OpenVINO names it.
        precision: ``f32``, ``bf16``, ``f16`` or ``int8``.
        threads: as the sessions were opened with.

    Raises:
        RuntimeError: the device does not compute in it.
    """
    config = {"PERFORMANCE_HINT": "LATENCY"}
    if precision != "int8":
        config["INFERENCE_PRECISION_HINT"] = precision
    elif "FP32" in core().get_property(device, "OPTIMIZATION_CAPABILITIES"):  # of what stays float; an NPU has none
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    request = core().compile_model(_chain(int8=precision == "int8"), device, config).create_infer_request()
    request.set_input_tensor(ov.Tensor(_random((_SIDE, _SIDE))))
    best_ms = time_interleaved({"infer": request.infer}, 1, _RUNS)["infer"].min_ms
    return _CHAIN * 2 * _SIDE**3 / (best_ms / 1000)


def _chain(int8: bool) -> ov.Model:
    """x -> x W1 W2 ... summed up, float or with 8-bit x and W at every product, as NNCF writes them."""
    image = ops.parameter([_SIDE, _SIDE], np.float32)
    x = image
    for _ in range(_CHAIN):
        weights = ops.constant(_random((_SIDE, _SIDE)))
        if int8:
            low, high = np.float32(-1), np.float32(127 / 128)
            x = ops.fake_quantize(x, low, high, low, high, 256)
            integers = ops.constant((_random((_SIDE, _SIDE)) * 127).astype(np.int8))
            weights = ops.multiply(ops.convert(integers, np.float32), ops.constant(np.float32(1 / 127)))
        x = ops.matmul(x, weights, False, False)
    total = ops.reduce_mean(x, ops.constant(np.array([0, 1])), False)
    return ov.Model([ops.result(total)], [image], "matmul")


def _random(shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _tells(device: str, name: str) -> bool:
    return knows(device) and name in core().get_property(device, "SUPPORTED_PROPERTIES")
