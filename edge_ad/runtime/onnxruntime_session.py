"""Sessions on ONNX Runtime: CPU and CUDA. The only module that imports it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import DeviceFallbackError, GraphFormatError, InferenceError, InputError, UnsupportedPrecisionError
from edge_ad.runtime.devices import DeviceInfo, not_found
from edge_ad.runtime.session import ExecutionPrecision, Handle, Session, TensorSpec

ENGINE = "ONNX Runtime"
ELEMENTS_MAX = 2**31  # of one tensor: outputs are allocated before the graph runs
BATCH_AXIS = "batch"  # the free dimension our exporter names
_PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider"}
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}


class _Output(NamedTuple):
    """A handle. ``array`` is the value's memory on the CPU, where `OrtValue.numpy` would copy it; else None."""

    value: Any  # onnxruntime.OrtValue
    array: NDArray[Any] | None


def devices() -> list[DeviceInfo]:
    """The devices this build of ONNX Runtime is made for; whether CUDA works shows when a session is opened."""
    available = ort.get_available_providers()
    return [
        DeviceInfo(name, f"{ENGINE} {provider}", ENGINE, ("f32",))
        for name, provider in _PROVIDERS.items()
        if provider in available
    ]


class OnnxruntimeSession:
    """One ONNX graph on one device, for one batch size. See `edge_ad.runtime.session.Session`.

    Make one with `open_graph`. Outputs live in buffers that every run writes anew, on the device.
    """

    precision = "f32"  # the arithmetic of our graphs, also where their weights are stored in half precision
    aside = False

    def __init__(self, session: ort.InferenceSession, device: str, batch_size: int) -> None:
        kind, _, index = device.partition(":")
        self.device = device
        self.inputs: Mapping[str, TensorSpec] = _specs(session.get_inputs(), batch_size)
        self.outputs: Mapping[str, TensorSpec] = _specs(session.get_outputs(), batch_size)
        self._session: ort.InferenceSession | None = session
        self._binding: Any = session.io_binding()
        self._outputs = {name: _allocate(spec, kind.lower(), int(index or 0)) for name, spec in self.outputs.items()}
        for name, output in self._outputs.items():
            self._binding.bind_ortvalue_output(name, output.value)

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """See `Session.run`."""
        if self._session is None:
            raise InferenceError("this session is closed")
        try:
            for name in self.inputs:
                value = feeds[name]
                if isinstance(value, np.ndarray):
                    self._binding.bind_cpu_input(name, value)
                else:
                    self._binding.bind_ortvalue_input(name, value.value)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the engine's own exceptions have no other base
            raise InferenceError(f"{ENGINE} failed on {self.device}: {_gist(error)}") from error
        return self._outputs

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """See `Session.fetch`."""
        array: NDArray[Any] = handle.value.numpy() if handle.array is None else handle.array
        return array

    def close(self) -> None:
        """See `Session.close`."""
        self._session = self._binding = None
        self._outputs = {}


def open_graph(
    graph: GraphFiles,
    device: str,
    *,
    precision: ExecutionPrecision,
    batch_size: int,
    threads: int | None,
    cache_dir: Path | None,
    like: Session | None,
    aside: bool,
) -> OnnxruntimeSession:
    """See `edge_ad.runtime.sessions.open_session`. Every graph is compiled for itself, whatever it is ``like``."""
    provider, settings = _provider(device)
    if precision not in (ExecutionPrecision.AUTO, ExecutionPrecision.F32):
        raise UnsupportedPrecisionError(
            f"{ENGINE} executes these graphs in f32, not in {precision}; ask for f32 or auto"
        )
    if cache_dir is not None:
        raise InputError(f"cache_dir: {ENGINE} keeps no compiled graphs; leave it out")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings would go to stderr unasked
    options.add_free_dimension_override_by_name(BATCH_AXIS, batch_size)
    # Every session has threads of its own, which by default spin while they wait: those of ten idle graphs then take
    # the cores from the one that runs (an ensemble of nine on two shared cores took five times as long).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never the engine's own format
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(graph.model, options, providers=[(provider, settings)])
    except Exception as error:  # the engine's own exceptions have no other base
        raise InferenceError(f"{ENGINE} cannot load {graph.name} on {device}: {_gist(error)}") from error
    if session.get_providers()[0] != provider:
        raise DeviceFallbackError(
            f"{device} was asked for, but {ENGINE} fell back to {session.get_providers()[0]}; "
            "check the driver and the CUDA and cuDNN libraries"
        )
    return OnnxruntimeSession(session, device, batch_size)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """The execution provider of a device string, and its settings."""
    match = re.fullmatch(r"(CPU|CUDA)(?::(\d+))?", device)
    if not match or (match[1] == "CPU" and match[2]) or _PROVIDERS[match[1]] not in ort.get_available_providers():
        raise not_found(device, ENGINE, [info.name for info in devices()])
    return _PROVIDERS[match[1]], {"device_id": match[2] or "0"} if match[1] == "CUDA" else {}


def _allocate(spec: TensorSpec, memory: str, index: int) -> _Output:
    if memory == "cpu":
        array = np.zeros(spec.shape, spec.dtype)
        return _Output(ort.OrtValue.ortvalue_from_numpy(array), array)  # shares the array's memory
    return _Output(ort.OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype), memory, index), None)


def _specs(nodes: Any, batch_size: int) -> dict[str, TensorSpec]:
    for node in nodes:
        sizes = node.shape[1:]
        if node.type not in _DTYPES or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise GraphFormatError(
                f"{node.name}: {node.type} {node.shape}; a bundle's graphs have fixed sizes and plain types"
            )
        if batch_size * math.prod(sizes) > ELEMENTS_MAX:
            raise GraphFormatError(f"{node.name}: {node.shape} has more than {ELEMENTS_MAX} elements")
    return {node.name: TensorSpec(node.name, (batch_size, *node.shape[1:]), _DTYPES[node.type]) for node in nodes}


def _gist(error: Exception) -> str:
    return " ".join(str(error).split())
