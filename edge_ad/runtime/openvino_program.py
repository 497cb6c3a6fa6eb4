"""Graphs that differ in their constants alone, compiled once: what differs is an input that each of them brings.

The heads of an ensemble are one graph with different numbers. Compiled one by one, each holds its numbers twice: as the
file has them, and as the engine wants them. Where an inference reads most of them once (elementwise operations, a
matrix per position) the engine gains nothing from knowing them beforehand, and a PaDiM head takes as long either way.
Weights of convolutions it would rearrange for speed: graphs that hold more than `OPERATIONS` are compiled one by one.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import OutputWriteError
from edge_ad.runtime.telemetry import no_telemetry

with no_telemetry():
    import openvino as ov
    from openvino import opset13 as op
    from openvino.op import Constant

# Nothing with a graph inside, whose constants would be overlooked, and nothing an engine fuses with its constants.
ELEMENTWISE = frozenset({"Add", "Subtract", "Multiply", "Divide"})
OPERATIONS = ELEMENTWISE | {
    *("Parameter", "Result", "Constant", "Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"),
    *("MatMul", "FakeQuantize", "ReduceSum", "ReduceMean", "ReduceMax", "Relu", "Sqrt", "Power", "Abs", "Maximum"),
}
_FLOATS = (ov.Type.f32, ov.Type.f16)
_NUMPY_TYPES = (*_FLOATS, ov.Type.i32, ov.Type.i64)  # of others numpy gives bits, not numbers
_KINDS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}
_F16_MAX = float(np.finfo(np.float16).max)
_NAME = re.compile(rb'(<layer id="\d+"|<net) name="[^"]*"')  # numbered anew by every conversion
_PREFIX = "constant_"
_ALIGNMENT = 64  # bytes: the widest vectors
_CHUNK = 1 << 16  # numbers converted at a time: they stay in the cache

Piece = tuple[int, NDArray[np.uint8]]  # where it begins, and its bytes


@dataclass(frozen=True)
class Constants:
    """What a graph brings: tensors by input name, and the file they are mapped from where they are not in memory."""

    tensors: dict[str, ov.Tensor]
    mapping: mmap.mmap | None

    def forget(self) -> None:
        """Give back the memory of a mapping's pages, until they are read again."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such thing
            self.mapping.madvise(mmap.MADV_DONTNEED)


class Program:
    """A model with inputs in place of constants. Make one with `make_program`.

    Args:
        core: reads graphs.
        graph: the first of those it is for.
        model: it, as read; changed.
        bound: which of its constants become inputs, and the type that the device computes with there: numbers of
            another one would be converted at every inference.
    """

    def __init__(self, core: ov.Core, graph: GraphFiles, model: ov.Model, bound: Mapping[int, ov.Type]) -> None:
        self._core = core
        self._key = _key(graph)
        self._kinds = dict(bound)
        self._fixed: dict[int, bytes] = {}
        for index, constant in enumerate(_constants(model)):
            if index in bound:
                _replace_by_input(model, constant, _input_name(index), bound[index])
            else:
                self._fixed[index] = constant.data.tobytes()
                _replace_by_copy(constant)
        model.validate_nodes_and_infer_types()

    def constants_of(self, graph: GraphFiles, *, aside: bool, folder: Path | None) -> Constants | None:
        """What ``graph`` brings, or None if it differs in more than that.

        Args:
            aside: keep them in a file without a name, which goes when this process ends, instead of memory.
            folder: where; the system's own for temporary files where None.

        Raises:
            OutputWriteError: no such file can be written.
        """
        if _key(graph) != self._key:
            return None
        model = self._core.read_model(graph.model, ov.Tensor(graph.weights, shared_memory=True))
        constants = _constants(model)
        if any(constants[index].data.tobytes() != fixed for index, fixed in self._fixed.items()):
            return None
        sizes = {index: constants[index].data.size * kind.size for index, kind in self._kinds.items()}
        *starts, total = accumulate(map(_aligned, sizes.values()), initial=0)
        places = dict(zip(sizes, starts, strict=True))
        pieces = (
            (places[index] + at, piece)
            for index, kind in self._kinds.items()
            for at, piece in _pieces(constants[index].data, kind)
        )
        mapping = _map_file(pieces, total, folder) if aside else None
        memory = np.frombuffer(mapping, np.uint8) if mapping is not None else _fill_memory(pieces, total)
        tensors = {}
        for index, kind in self._kinds.items():
            numbers = memory[places[index] :][: sizes[index]].view(_storage(kind))
            tensors[_input_name(index)] = ov.Tensor(numbers, constants[index].output(0).shape, kind)
        return Constants(tensors, mapping)


def make_program(core: ov.Core, graph: GraphFiles, model: ov.Model, precision: str) -> Program | None:
    """A program of ``model``, as read from ``graph``, which is changed; None where there is little to share.

    Args:
        precision: in which the device will compute, "f32", "bf16" or "f16".
    """
    if b"'" in graph.model:  # OpenVINO quotes with ": between others a difference could hide from `_key`
        return None
    if any(node.get_type_name() not in OPERATIONS for node in model.get_ordered_ops()):
        return None
    constants = _constants(model)
    if any(name.startswith(_PREFIX) for port in model.inputs for name in port.names):
        return None
    kinds = [_kind_of_input(constant, _KINDS[precision]) for constant in constants]
    fixed = (constant for constant, kind in zip(constants, kinds, strict=True) if kind is None)
    if any(constant.output(0).element_type not in _NUMPY_TYPES for constant in fixed):
        return None
    bound = {index: kind for index, kind in enumerate(kinds) if kind is not None}
    if 2 * sum(constants[index].get_byte_size() for index in bound) <= sum(each.get_byte_size() for each in constants):
        return None
    return Program(core, graph, model, bound)


def as_bfloat16(values: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16 nearest to ``values`` (n,), ties to even: what an engine rounds its constants to."""
    if values.dtype == np.float16:
        return _BFLOAT16_OF_FLOAT16[values.view(np.uint16)]
    return _round_to_bfloat16(values.astype(np.float32, copy=False))


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0  # the sum of some would wrap around to a number
    return rounded


_BFLOAT16_OF_FLOAT16 = _round_to_bfloat16(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))


def _storage(kind: ov.Type) -> Any:
    """The numpy type of a tensor's memory; uint16 for the bits of bfloat16, which numpy does not have."""
    return np.uint16 if kind == ov.Type.bf16 else kind.to_dtype()


def _pieces(values: NDArray[Any], kind: ov.Type) -> Iterator[Piece]:
    """``values`` as numbers of ``kind``, piece by piece: nothing as large as they are is made on the way."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        yield start * kind.size, _convert(flat[start : start + _CHUNK], kind).view(np.uint8)


def _convert(values: NDArray[Any], kind: ov.Type) -> NDArray[Any]:
    if kind == ov.Type.bf16:
        return as_bfloat16(values)
    if kind == ov.Type.f16:
        values = values.clip(-_F16_MAX, _F16_MAX)  # as the engine does with its own constants
    return values.astype(_storage(kind))


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def _fill_memory(pieces: Iterable[Piece], size_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(size_bytes + _ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % _ALIGNMENT :][:size_bytes]
    for at, piece in pieces:
        memory[at : at + len(piece)] = piece
    return memory


def _key(graph: GraphFiles) -> bytes:
    """The graph without the names that a conversion gives it."""
    return _NAME.sub(rb"\1", graph.model)


def _input_name(index: int) -> str:
    return f"{_PREFIX}{index}"


def _constants(model: ov.Model) -> list[ov.Node]:
    """In an order that equal graphs share."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


def _readers(constant: ov.Node) -> list[ov.Input]:
    """What reads a constant: behind its Convert where it is stored in fewer bits, and its Multiply where in int8."""
    readers = list(constant.output(0).get_target_inputs())
    if [reader.get_node().get_type_name() for reader in readers] == ["Convert"]:
        readers = list(readers[0].get_node().output(0).get_target_inputs())
    if constant.output(0).element_type == ov.Type.i8 and len(readers) == 1:
        scaled = readers[0].get_node()
        if scaled.get_type_name() == "Multiply" and prod(scaled.input(1).get_shape()) == 1:
            readers = list(scaled.output(0).get_target_inputs())
    return readers


def _kind_of_input(constant: ov.Node, computed: ov.Type) -> ov.Type | None:
    """The type of the input that ``constant`` may become, or None where it stays part of the graph.

    It may if all its readers want float32 and use every number once, as an element or in a stack of matrices.

    Args:
        computed: what the device multiplies matrices in; those of whole numbers stay int8.
    """
    shape, readers, stored = constant.output(0).shape, _readers(constant), constant.output(0).element_type
    if stored not in (*_FLOATS, ov.Type.i8) or prod(shape) == 1 or not readers:
        return None
    if any(reader.get_element_type() != ov.Type.f32 for reader in readers):
        return None
    kinds = {reader.get_node().get_type_name() for reader in readers}
    is_stack = prod(shape[:-2]) > 1
    if stored == ov.Type.i8:
        return ov.Type.i8 if kinds == {"MatMul"} and is_stack else None
    if not all(kind in ELEMENTWISE or (kind == "MatMul" and is_stack) for kind in kinds):
        return None
    return computed if kinds == {"MatMul"} else ov.Type.f32


def _replace_by_input(model: ov.Model, constant: ov.Node, name: str, kind: ov.Type) -> None:
    whole = kind == ov.Type.i8  # what converts and scales them is how the engine knows whole numbers: it stays
    readers = list(constant.output(0).get_target_inputs()) if whole else _readers(constant)
    parameter = op.parameter(list(constant.output(0).shape), kind, name)
    parameter.output(0).get_tensor().set_names({name})
    source = parameter if whole or kind == ov.Type.f32 else op.convert(parameter, ov.Type.f32)
    for reader in readers:
        reader.replace_source_output(source.output(0))
    model.add_parameters([parameter])


def _replace_by_copy(constant: ov.Node) -> None:
    """The same numbers in memory of their own: what the graph was read from may go."""
    output = constant.output(0)
    copied = Constant(ov.Tensor(np.array(constant.data), output.shape, output.element_type), shared_memory=False)
    for reader in output.get_target_inputs():
        reader.replace_source_output(copied.output(0))


def _map_file(pieces: Iterable[Piece], size_bytes: int, folder: Path | None) -> mmap.mmap:
    """A file of these bytes, mapped into memory and without a name: nobody else can change or shorten it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for at, piece in pieces:
                file.seek(at)
                file.write(piece.data)
            file.seek(0, os.SEEK_END)
            file.write(bytes(size_bytes - file.tell()))
            file.flush()  # written, not only promised: a full disk is an error here, and a crash under a mapping
            return mmap.mmap(file.fileno(), size_bytes)
    except OSError as error:
        raise OutputWriteError(
            f"cannot put {size_bytes / 1e6:.1f} MB of a head aside in {folder or 'the folder for temporary files'}: "
            f"{error.strerror or error}; free some space, choose another cache_dir, or give no memory_budget"
        ) from error
