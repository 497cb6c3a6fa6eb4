"""Graphs that differ in their constants alone, compiled once: what differs is an input that each of them brings.

The heads of an ensemble are one graph with different numbers. Compiled one by one, each holds its numbers twice: as
the file has them, and as the engine wants them. Where an inference reads most of them once (elementwise operations, a
matrix per position) the engine gains nothing from knowing them beforehand, and a PaDiM head takes as long either way.
Weights of convolutions and of dense layers it would rearrange for speed; graphs of those are compiled one by one.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.errors import OutputWriteError

_ELEMENTWISE = ("Add", "Subtract", "Multiply", "Divide")
_LAYER_NAME = re.compile(rb' name="[^"]*"')  # of layers and of the net: numbered anew by every conversion
_PREFIX = "constant_"
Piece = tuple[int, NDArray[np.uint8]]  # where it begins, and its bytes
ALIGNMENT = 64  # bytes: the widest vectors
_CHUNK = 1 << 16  # numbers rounded at a time: they stay in the cache


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
        bound: its constants that become inputs, with the type that the device computes with: others would be
            converted at every inference.
    """

    def __init__(
        self, core: ov.Core, graph: GraphFiles, model: ov.Model, bound: Sequence[tuple[ov.Node, ov.Type]]
    ) -> None:
        self._core = core
        self._key = _key(graph)
        self._kinds: dict[int, ov.Type] = {}
        self._fixed: dict[int, NDArray[Any]] = {}
        kinds = {constant.get_friendly_name(): kind for constant, kind in bound}
        for index, constant in enumerate(_constants(model)):
            if kind := kinds.get(constant.get_friendly_name()):
                self._kinds[index] = kind
                _replace_by_input(model, constant, f"{_PREFIX}{index}", kind)
            else:
                self._fixed[index] = _replace_by_copy(constant)
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
        constants = dict(enumerate(_constants(model)))
        if any(constants[index].data.tobytes() != fixed.tobytes() for index, fixed in self._fixed.items()):
            return None
        sizes = {index: constants[index].data.size * kind.size for index, kind in self._kinds.items()}
        places = dict(zip(sizes, accumulate(map(_aligned, sizes.values()), initial=0), strict=False))
        pieces = (
            (places[index] + at, piece)
            for index, kind in self._kinds.items()
            for at, piece in _pieces(constants[index].data, kind)
        )
        total = sum(map(_aligned, sizes.values()))
        mapping = _map_file(pieces, total, folder) if aside else None
        memory = np.frombuffer(mapping, np.uint8) if mapping is not None else _fill_memory(pieces, total)
        tensors = {}
        for index, kind in self._kinds.items():
            numbers = memory[places[index] :][: sizes[index]].view(_storage(kind))
            tensors[f"{_PREFIX}{index}"] = ov.Tensor(numbers, constants[index].output(0).shape, kind)
        return Constants(tensors, mapping)


def make_program(core: ov.Core, graph: GraphFiles, model: ov.Model, precision: str) -> Program | None:
    """A program of ``model``, as read from ``graph``, which is changed; None where there is little to share.

    Args:
        precision: in which the device will compute, "f32", "bf16" or "f16".
    """
    constants = _constants(model)
    matmul_kind = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}[precision]
    bound = [
        (constant, matmul_kind if readers == {"MatMul"} else ov.Type.f32)
        for constant in constants
        if (readers := _readers_if_once(constant))
    ]
    if 2 * sum(_bytes(constant) for constant, _ in bound) <= sum(map(_bytes, constants)):
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
    return rounded


_BFLOAT16_OF_FLOAT16 = _round_to_bfloat16(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))


def _storage(kind: ov.Type) -> Any:
    """The numpy type of a tensor's memory; uint16 for the bits of bfloat16, which numpy does not have."""
    return np.uint16 if kind == ov.Type.bf16 else kind.to_dtype()


def _pieces(values: NDArray[Any], kind: ov.Type) -> Iterator[Piece]:
    """``values`` as numbers of ``kind``, piece by piece: nothing as large as they are is made on the way."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        numbers = as_bfloat16(part) if kind == ov.Type.bf16 else part.astype(_storage(kind))
        yield start * kind.size, numbers.view(np.uint8)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _fill_memory(pieces: Iterable[Piece], size_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(size_bytes, np.uint8)
    for at, piece in pieces:
        memory[at : at + len(piece)] = piece
    return memory


def _key(graph: GraphFiles) -> bytes:
    return _LAYER_NAME.sub(b"", graph.model)


def _constants(model: ov.Model) -> list[ov.Node]:
    """In an order that equal graphs share."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


def _bytes(constant: ov.Node) -> int:
    size: int = constant.get_byte_size()
    return size


def _readers(constant: ov.Node) -> list[ov.Input]:
    """What reads a constant, past the conversion of one that is stored in fewer bits."""
    readers = list(constant.output(0).get_target_inputs())
    if [reader.get_node().get_type_name() for reader in readers] == ["Convert"]:
        return list(readers[0].get_node().output(0).get_target_inputs())
    return readers


def _readers_if_once(constant: ov.Node) -> set[str]:
    """The kinds of its readers if an inference of one tile reads each of its floats once, as they lie; else none."""
    shape = constant.output(0).shape
    if constant.output(0).element_type not in (ov.Type.f32, ov.Type.f16) or prod(shape) == 1:
        return set()
    readers = {reader.get_node().get_type_name() for reader in _readers(constant)}
    once = all(reader in _ELEMENTWISE or (reader == "MatMul" and prod(shape[:-2]) > 1) for reader in readers)
    return readers if once else set()


def _replace_by_input(model: ov.Model, constant: ov.Node, name: str, kind: ov.Type) -> None:
    parameter = op.parameter(list(constant.output(0).shape), kind, name)
    parameter.output(0).get_tensor().set_names({name})
    source = parameter if kind == ov.Type.f32 else op.convert(parameter, ov.Type.f32)
    for reader in _readers(constant):
        reader.replace_source_output(source.output(0))
    model.add_parameters([parameter])


def _replace_by_copy(constant: ov.Node) -> NDArray[Any]:
    """Its numbers, where the graph reads them from now on: what it was read from may go."""
    values: NDArray[Any] = np.array(constant.data)
    copied = op.constant(values, constant.output(0).element_type)
    for reader in constant.output(0).get_target_inputs():
        reader.replace_source_output(copied.output(0))
    return values


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
            f"cannot put {size_bytes / 1e6:.1f} MB of a head aside in {folder or tempfile.gettempdir()}: "
            f"{error.strerror or error}; free some space, choose another cache_dir, or give no memory_budget"
        ) from error
