"""Sessions on ONNX Runtime: CPU, CUDA and TensorRT. The only module that imports it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from hashlib import sha256
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import (
    DeviceFallbackError,
    DeviceNotFoundError,
    GraphFormatError,
    InferenceError,
    InputError,
    UnsupportedPrecisionError,
)
from edge_ad.runtime.devices import DeviceInfo, not_found
from edge_ad.runtime.processor import usable_cpus
from edge_ad.runtime.session import ExecutionPrecision, Handle, Session, TensorSpec
from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import onnxruntime as ort

ENGINE = "ONNX Runtime"
ELEMENTS_MAX = 2**31  # of one tensor: outputs are allocated before the graph runs
BATCH_AXIS = "batch"  # the free dimension our exporter names
ARITHMETIC = "edge_ad.arithmetic"  # metadata our exporter writes: what float parts compute in, f32 without it
_LOGGER = logging.getLogger(__name__)
_LIBRARIES_LOCK = Lock()
_ERRORS = 3  # as ONNX Runtime numbers what it logs
# "Invalid device ID: 7, must be between 0 (inclusive) and 1 (exclusive)", of either provider; the other is CUDA's own
_NO_SUCH_GPU = re.compile(r"invalid device (id|ordinal)\b", re.IGNORECASE)
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}


class _Provider(NamedTuple):
    """An execution provider, and what it can execute float32 graphs in, its default first."""

    name: str
    precisions: tuple[ExecutionPrecision, ...]


_F32, _TF32, _F16 = ExecutionPrecision.F32, ExecutionPrecision.TF32, ExecutionPrecision.F16
_PROVIDERS = {
    "CPU": _Provider("CPUExecutionProvider", (_F32,)),
    "CUDA": _Provider("CUDAExecutionProvider", (_TF32, _F32)),
    # It multiplies in TF32 whenever the GPU can, and a session cannot forbid it
    "TENSORRT": _Provider("TensorrtExecutionProvider", (_TF32, _F16)),
}


def devices() -> list[DeviceInfo]:
    """The devices this build of ONNX Runtime is made for; whether a GPU works shows when a session is opened."""
    available = ort.get_available_providers()
    return [
        DeviceInfo(name, f"{ENGINE} {provider.name}", ENGINE, tuple(map(str, provider.precisions)))
        for name, provider in _PROVIDERS.items()
        if provider.name in available
    ]


class _Output(NamedTuple):
    """A handle. ``array`` is the value's memory on the CPU, where `OrtValue.numpy` would copy it; else None."""

    value: Any  # onnxruntime.OrtValue
    array: NDArray[Any] | None


class _Inputs(Protocol):
    """Binds what a session is fed. Returns the options to run with, None for the engine's own."""

    def bind(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Any | None: ...


class _HostInputs:
    """Arrays are read where they lie."""

    def __init__(self, binding: Any, specs: Mapping[str, TensorSpec]) -> None:
        self._binding, self._specs = binding, specs

    def bind(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> None:
        for name in self._specs:
            value = feeds[name]
            if isinstance(value, np.ndarray):
                self._binding.bind_cpu_input(name, value)
            else:
                self._binding.bind_ortvalue_input(name, value.value)


class _DeviceInputs:
    """Arrays are copied to buffers on the device; handles are read where they lie.

    A CUDA graph repeats its kernels with the addresses it was captured with, so each combination of addresses has a
    graph of its own: in a detector there is one.
    """

    def __init__(self, binding: Any, specs: Mapping[str, TensorSpec], memory: str, number: int) -> None:
        self._binding, self._specs, self._place = binding, specs, (memory, number)
        self._buffers: dict[str, Any] = {}
        self._options: dict[tuple[int, ...], tuple[Any, list[Any]]] = {}  # with its values: none of them may be freed
        self._bound: tuple[int, ...] = ()

    def bind(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Any:
        values = [self._value(spec, feeds[name]) for name, spec in self._specs.items()]
        key = tuple(map(id, values))
        if key != self._bound:
            for name, value in zip(self._specs, values, strict=True):
                self._binding.bind_ortvalue_input(name, value)
            self._bound = key
        if key not in self._options:
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(len(self._options) + 1))
            self._options[key] = options, values
        return self._options[key][0]

    def _value(self, spec: TensorSpec, value: NDArray[Any] | Handle) -> Any:
        if not isinstance(value, np.ndarray):
            return value.value
        if (value.shape, str(value.dtype)) != (spec.shape, spec.dtype):
            raise ValueError(f"{spec.name}: expected {spec.dtype} {spec.shape}, but got {value.dtype} {value.shape}")
        if spec.name not in self._buffers:
            self._buffers[spec.name] = _on_device(spec, *self._place)
        self._buffers[spec.name].update_inplace(value)
        return self._buffers[spec.name]


class OnnxruntimeSession:
    """One ONNX graph on one device, for one batch size. See `edge_ad.runtime.session.Session`.

    Make one with `open_graph`. Outputs live in buffers that every run writes anew, on the device.
    """

    aside = False

    def __init__(self, session: ort.InferenceSession, device: str, precision: str, batch_size: int) -> None:
        kind, _, number = device.partition(":")
        memory = "cpu" if kind == "CPU" else "cuda"
        place = memory, int(number or 0)
        self.device = device
        self.precision = precision
        self.inputs: Mapping[str, TensorSpec] = _specs(session.get_inputs(), batch_size)
        self.outputs: Mapping[str, TensorSpec] = _specs(session.get_outputs(), batch_size)
        self._session: ort.InferenceSession | None = session
        self._binding: Any = session.io_binding()
        self._inputs: _Inputs | None = (
            _HostInputs(self._binding, self.inputs)
            if memory == "cpu"
            else _DeviceInputs(self._binding, self.inputs, *place)
        )
        self._outputs = {name: _allocate(spec, *place) for name, spec in self.outputs.items()}
        for name, output in self._outputs.items():
            self._binding.bind_ortvalue_output(name, output.value)

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """See `Session.run`."""
        if self._session is None or self._inputs is None:
            raise InferenceError("this session is closed")
        try:
            self._session.run_with_iobinding(self._binding, self._inputs.bind(feeds))
        except Exception as error:  # the engine's own exceptions have no other base
            raise InferenceError(f"{ENGINE} failed on {self.device}: {_gist(error)}") from error
        return self._outputs

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """See `Session.fetch`."""
        array: NDArray[Any] = handle.value.numpy() if handle.array is None else handle.array
        return array

    def close(self) -> None:
        """See `Session.close`."""
        self._session = self._binding = self._inputs = None
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
    """See `edge_ad.runtime.sessions.open_session`. Every graph is compiled for itself, whatever it is ``like``.

    On CUDA a graph is captured and repeated as a whole (CUDA graphs) where all of its operations run there.
    """
    kind, number = _parse(device)
    if cache_dir is not None and kind != "TENSORRT":
        raise InputError(f"cache_dir: {ENGINE} keeps no compiled graphs on {kind}; leave it out")
    if threads is not None and kind != "CPU":
        raise InputError(f"threads: only the CPU takes a number of threads, and the device is {device}")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS  # its warnings would go to stderr unasked
    options.add_free_dimension_override_by_name(BATCH_AXIS, batch_size)
    # Every session has threads of its own, which by default spin while they wait: those of ten idle graphs then take
    # the cores from the one that runs (an ensemble of nine on two shared cores took five times as long).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never the engine's own format
    # Left to itself the engine pins a session's threads to cores, those of every session to the same ones
    options.intra_op_num_threads = threads or usable_cpus()

    if kind != "CPU":
        _load_libraries()
    kept = _engine_cache(cache_dir, graph, batch_size) if cache_dir else {}

    def opened(*, captured: bool) -> ort.InferenceSession:
        settings = _settings(kind, number, precision, captured=captured) | kept
        providers = [(_PROVIDERS[kind].name, settings)]
        if kind == "TENSORRT":  # what it does not know runs on the same GPU
            rest = _settings("CUDA", number, precision, captured=False)
            providers.append((_PROVIDERS["CUDA"].name, rest))
        session = ort.InferenceSession(graph.model, options, providers=providers, enable_fallback=0)
        if hasattr(session, "_model_bytes"):  # of its Python part, which keeps the file for a fallback
            session._model_bytes = b""
        return session

    try:
        try:
            session = opened(captured=kind == "CUDA")
        except Exception as error:  # the engine's own exceptions have no other base
            if "graph capture" not in str(error):
                raise
            session = opened(captured=False)
            _LOGGER.warning("%s: some of its operations run on the CPU, not on %s", graph.name, device)
    except Exception as error:  # as above
        if _NO_SUCH_GPU.search(str(error)):
            raise not_found(device, ENGINE, _names()) from error
        raise InferenceError(f"{ENGINE} cannot load {graph.name} on {device}: {_gist(error)}") from error
    if session.get_providers()[0] != _PROVIDERS[kind].name:
        raise DeviceFallbackError(
            f"{device} was asked for, but {ENGINE} fell back to {session.get_providers()[0]}; "
            f"check the driver and the libraries that {_PROVIDERS[kind].name} needs"
        )
    return OnnxruntimeSession(session, device, _executed(session, graph, device, precision), batch_size)


def _parse(device: str) -> tuple[str, str]:
    """Key of `_PROVIDERS`, and the number of the device."""
    kind, colon, number = device.partition(":")
    known = kind in _PROVIDERS and _PROVIDERS[kind].name in ort.get_available_providers()
    if not known or (colon and kind == "CPU"):
        raise not_found(device, ENGINE, _names())
    if colon and not re.fullmatch(r"\d+", number):
        found = ", ".join(_names())
        raise DeviceNotFoundError(f"device {device!r}: expected a number after the colon, as {kind}:1; found: {found}")
    return kind, number or "0"


def _names() -> list[str]:
    return [info.name for info in devices()]


def _load_libraries() -> None:
    """CUDA and cuDNN from their Python packages, where they are installed so; the system's are found without."""
    with _LIBRARIES_LOCK:  # two at once would leave stdout redirected
        _load_libraries_once()


@cache
def _load_libraries_once() -> None:
    ort.set_default_logger_severity(_ERRORS)  # else a warning per session that CUDA is no plugin
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with redirect_stdout(StringIO()):  # it tells there what it does not find
            ort.preload_dlls()


def _settings(kind: str, number: str, precision: ExecutionPrecision, *, captured: bool) -> dict[str, str]:
    """Of the provider, as its documentation names them."""
    if kind == "CPU":
        return {}
    tf32 = str(int(precision in (ExecutionPrecision.AUTO, _TF32)))
    if kind == "CUDA":
        return {"device_id": number, "use_tf32": tf32, "enable_cuda_graph": str(int(captured))}
    return {"device_id": number, "trt_fp16_enable": str(int(precision is _F16))}


def _engine_cache(folder: Path, graph: GraphFiles, batch_size: int) -> dict[str, str]:
    """Settings of TensorRT's cache. By itself that tells graphs apart by the names in them alone: all heads of an
    ensemble would be the first one.
    """
    prefix = f"{sha256(graph.model).hexdigest()[:32]}_{batch_size}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": prefix,
    }


def _executed(
    session: ort.InferenceSession, graph: GraphFiles, device: str, precision: ExecutionPrecision
) -> ExecutionPrecision:
    """What ``session``'s float parts are executed in. Raises `UnsupportedPrecisionError` where that was not asked."""
    kind, _, _ = device.partition(":")
    half = session.get_modelmeta().custom_metadata_map.get(ARITHMETIC) == _F16
    # The CPU has no such kernels: the engine casts what goes into each, and the result back
    possible = (_F16,) if half and kind != "CPU" else _PROVIDERS[kind].precisions
    if precision is ExecutionPrecision.AUTO:
        return possible[0]
    if precision not in possible:
        raise UnsupportedPrecisionError(
            f"{ENGINE} executes {graph.name} on {device} in {' or '.join(possible)}, not in {precision}; "
            f"ask for {', '.join(possible)} or auto"
        )
    return precision


def _allocate(spec: TensorSpec, memory: str, number: int) -> _Output:
    if memory == "cpu":
        array = np.zeros(spec.shape, spec.dtype)
        return _Output(ort.OrtValue.ortvalue_from_numpy(array), array)  # shares the array's memory
    return _Output(_on_device(spec, memory, number), None)


def _on_device(spec: TensorSpec, memory: str, number: int) -> Any:
    return ort.OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype), memory, number)


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
