"""Sessions on OpenVINO: Intel CPU, GPU and NPU. In this room it and `openvino_program` import it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import EdgeAdError, InferenceError, InputError, UnsupportedPrecisionError
from edge_ad.runtime.devices import DeviceInfo, listed_as, not_found, split_device
from edge_ad.runtime.openvino_program import Constants, Program, make_program
from edge_ad.runtime.processor import bf16_is_slow
from edge_ad.runtime.session import ExecutionPrecision, Handle, Session, TensorSpec
from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import openvino as ov

ENGINE = "OpenVINO"
_PRECISIONS = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}  # OpenVINO's capability names
_CACHE_LOCK = RLock()  # a signal's handler may fork, or load, while its thread compiles
if hasattr(os, "register_at_fork"):  # a child is not to find it taken, nor another locale
    os.register_at_fork(
        before=_CACHE_LOCK.acquire, after_in_parent=_CACHE_LOCK.release, after_in_child=_CACHE_LOCK.release
    )


@cache
def core() -> ov.Core:
    """The process's one Core. It owns the device plugins and their thread pools, which all sessions share."""
    found = ov.Core()
    found.set_property({"ENABLE_MMAP": False})  # else a session computes from the file in its cache, whoever changes it
    return found


def devices() -> list[DeviceInfo]:
    """What OpenVINO finds on this machine."""
    return [
        DeviceInfo(name, core().get_property(name, "FULL_DEVICE_NAME"), ENGINE, _supported_precisions(name))
        for name in core().available_devices
    ]


@dataclass(frozen=True)
class Target:
    """What a graph is compiled for; ``config`` is OpenVINO's."""

    device: str
    batch_size: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Shared:
    """A compiled program, which other graphs may share."""

    program: Program
    compiled: ov.CompiledModel
    target: Target


class OpenvinoSession:
    """One IR, compiled for one device and one batch size. See `edge_ad.runtime.session.Session`.

    Make one with `open_graph`. Handles are openvino.Tensor.

    Args:
        compiled: the graph.
        weights: its constants, which are kept: some devices compute with them where they lie.
        shared: of a program.
        constants: what this graph brings to it.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        weights: ov.Tensor | None = None,
        shared: Shared | None = None,
        constants: Constants | None = None,
    ) -> None:
        brought = constants.tensors if constants else {}
        self.device = _executed_device(compiled)
        self.precision = _executed_precision(compiled)
        self.aside = constants is not None and constants.mapping is not None
        own = [port for port in compiled.inputs if port.any_name not in brought]
        self.inputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in own}
        self.outputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in compiled.outputs}
        self.shared = shared
        self._constants = constants
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._weights = weights
        self._fed: dict[str, NDArray[Any] | Handle] = {}
        self._handles: dict[str, tuple[tuple[int, tuple[int, ...]], Handle]] = {}  # with where each lies
        for name, tensor in brought.items():
            self._request.set_tensor(name, tensor)

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """See `Session.run`. Arrays must be writable: OpenVINO does not wrap others without a copy.

        What is fed again, the same object, stays bound: binding a tensor costs as much as a hundred small operations of
        Python, for the plugin wires its graph anew. Hence outputs are the same handles from run to run too.
        """
        request = self._request
        if request is None:
            raise InferenceError("this session is closed")
        try:
            for name in self.inputs:
                self._feed(request, name, feeds[name])
            request.start_async()  # `infer` would copy every output to a new array
            request.wait()
            if self._constants:
                self._constants.forget()
            return {name: self._output(request, name) for name in self.outputs}
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise InferenceError(f"OpenVINO failed on {self.device}: {_gist(error)}") from error

    def _feed(self, request: ov.InferRequest, name: str, value: NDArray[Any] | Handle) -> None:
        if value is self._fed.get(name):
            return
        tensor = ov.Tensor(value, shared_memory=True) if isinstance(value, np.ndarray) else value
        request.set_tensor(name, tensor)
        self._fed[name] = value

    def _output(self, request: ov.InferRequest, name: str) -> Handle:
        """The output's tensor: on a CPU the known handle while it is the same memory, for the engine may move it."""
        tensor = request.get_tensor(name)
        if self.device != "CPU":  # elsewhere the host need not see where it lies
            return tensor
        place = _place(tensor)
        if name not in self._handles or self._handles[name][0] != place:
            self._handles[name] = place, tensor
        return self._handles[name][1]

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """See `Session.fetch`."""
        array: NDArray[Any] = handle.data
        return array

    def close(self) -> None:
        """See `Session.close`."""
        self._request = self._weights = self._constants = self.shared = None
        self._fed, self._handles = {}, {}


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
) -> OpenvinoSession:
    """See `edge_ad.runtime.sessions.open_session`."""
    parts = _check_device(device)
    if threads is not None and parts and "CPU" not in parts:
        raise InputError(f"threads: only the CPU takes a number of threads, and the device is {device}")
    try:
        if device == "CPU" and precision is ExecutionPrecision.AUTO:
            precision = ExecutionPrecision(_supported_precisions(device)[0])  # ours, which need not be the engine's
        if precision is not ExecutionPrecision.AUTO:
            _check_precision(parts, precision)
        target = Target(device, batch_size, _config(device, precision, threads, cache_dir))
        session = _join(graph, like, target, aside, cache_dir) or _compile(graph, target, aside, cache_dir)
    except EdgeAdError:  # some are RuntimeErrors too
        raise
    except RuntimeError as error:
        raise InferenceError(f"OpenVINO cannot load {graph.name} on {device}: {_gist(error)}") from error
    if precision is not ExecutionPrecision.AUTO and session.precision != precision:
        raise UnsupportedPrecisionError(
            f"{session.device} executes {graph.name} in {session.precision}, not in the {precision} asked for; "
            "ask for that or for auto"
        )
    return session


def _config(device: str, precision: ExecutionPrecision, threads: int | None, cache_dir: Path | None) -> dict[str, Any]:
    """In OpenVINO's words."""
    policy, _ = split_device(device)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if policy == "AUTO":
        # Else it begins on the CPU and changes over while frames pass: to other scores than were tested. Without the
        # fallback after failures (ENABLE_RUNTIME_FALLBACK) as well it would not take the CPU of "AUTO:CPU" at all.
        config["ENABLE_STARTUP_FALLBACK"] = False
    if precision is not ExecutionPrecision.AUTO:
        config["INFERENCE_PRECISION_HINT"] = str(precision)
    elif policy and bf16_is_slow():
        config["DEVICE_PROPERTIES"] = {"CPU": {"INFERENCE_PRECISION_HINT": str(ExecutionPrecision.F32)}}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
        # Else they stay on the first CPUs, and so do those of every other detector of this machine
        config["ENABLE_CPU_PINNING"] = False
    if cache_dir is not None:
        config["CACHE_DIR"] = str(cache_dir)
    return config


def _join(
    graph: GraphFiles, like: Session | None, target: Target, aside: bool, folder: Path | None
) -> OpenvinoSession | None:
    """``graph`` on the compiled program of ``like``, or None where it needs one of its own."""
    shared = like.shared if isinstance(like, OpenvinoSession) else None
    if shared is None or shared.target != target:
        return None
    constants = shared.program.constants_of(graph, aside=aside, folder=folder)
    return OpenvinoSession(shared.compiled, None, shared, constants) if constants else None


def _compile(graph: GraphFiles, target: Target, aside: bool, folder: Path | None) -> OpenvinoSession:
    weights = ov.Tensor(graph.weights, shared_memory=True)
    model = core().read_model(graph.model, weights)
    batched = {port.any_name: _with_batch(port.partial_shape, target.batch_size) for port in model.inputs}
    program = None
    if target.device == "CPU":  # others would copy what is brought to the device at every inference
        program = make_program(core(), graph, model, target.config["INFERENCE_PRECISION_HINT"])
    model.reshape(batched)
    # While it reads or writes its cache, OpenVINO sets the locale of the whole process to "C", and then back to what it
    # found: two threads at once would leave it at "C", where Python opens text files as ASCII unless told otherwise.
    with _CACHE_LOCK if "CACHE_DIR" in target.config else nullcontext():
        compiled = core().compile_model(model, target.device, dict(target.config))
    if program is None:
        return OpenvinoSession(compiled, weights)
    constants = program.constants_of(graph, aside=aside, folder=folder)
    return OpenvinoSession(compiled, None, Shared(program, compiled, target), constants)


def _check_device(device: str) -> tuple[str, ...]:
    """The plain devices that ``device`` names; raises `DeviceNotFoundError` where one is not there."""
    _, parts = split_device(device)
    if device == "CPU":  # to list devices the engine loads the plugins of all: 50 MB
        return parts
    available = core().available_devices
    for part in parts:
        if listed_as(part, available) is None:
            raise not_found(device, ENGINE, available)
    return parts


def _check_precision(parts: tuple[str, ...], precision: ExecutionPrecision) -> None:
    """Raise `UnsupportedPrecisionError` unless each of ``parts`` has it; of AUTO, which names none, any device."""
    if parts:
        supported_by = {part: _supported_precisions(part) for part in parts}
    else:
        found = (each for name in core().available_devices for each in _supported_precisions(name))
        supported_by = {"AUTO": tuple(dict.fromkeys(found))}
    for name, supported in supported_by.items():
        if precision not in supported:
            raise UnsupportedPrecisionError(
                f"{name} does not execute in {precision}; ask for {', '.join(supported)} or auto"
            )


def _supported_precisions(device: str) -> tuple[str, ...]:
    """Float precisions a plain device executes in, its default first."""
    capabilities = core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    supported = [ours for theirs, ours in _PRECISIONS.items() if theirs in capabilities]
    default = core().get_property(device, "INFERENCE_PRECISION_HINT").get_type_name()
    if (device, default) == ("CPU", ExecutionPrecision.BF16) and bf16_is_slow():
        default = ExecutionPrecision.F32
    return tuple(sorted(supported, key=lambda precision: precision != default))


def _executed_device(compiled: ov.CompiledModel) -> str:
    """Joined by "," where there are several. An NPU answers with its name, others with a list of names."""
    found = compiled.get_property("EXECUTION_DEVICES")
    return found if isinstance(found, str) else ",".join(found)


def _place(tensor: ov.Tensor) -> tuple[int, tuple[int, ...]]:
    array = tensor.data
    return array.ctypes.data, array.shape


def _executed_precision(compiled: ov.CompiledModel) -> str:
    """What the plugin decided on when it compiled: on AMX machines an fp32 graph comes back as bf16."""
    if "INFERENCE_PRECISION_HINT" in compiled.get_property("SUPPORTED_PROPERTIES"):
        return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    # AUTO, HETERO and MULTI answer for the devices behind them.
    behind = compiled.get_property("DEVICE_PROPERTIES")
    return "+".join(
        dict.fromkeys(properties["INFERENCE_PRECISION_HINT"].get_type_name() for properties in behind.values())
    )


def _with_batch(shape: ov.PartialShape, batch_size: int) -> ov.PartialShape:
    return ov.PartialShape([batch_size, *list(shape)[1:]])


def _spec(port: ov.ConstOutput) -> TensorSpec:
    return TensorSpec(port.any_name, tuple(port.shape), np.dtype(port.element_type.to_dtype()).name)


def _gist(error: Exception) -> str:
    """The last line of the engine's message with a word in it; those before it are places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    return lines[-1] if lines else type(error).__name__
