"""The bytes of one graph, checked before an engine parses them: an engine is given bytes, never a path.

What was hashed is then what runs, whatever happens to the file. An engine that opens an IR by its path maps the
constants into memory and computes with them where they lie: a bundle copied over another one while a detector runs
would change its verdicts, and a shorter file would end the process.

Bytes have no folder either, so neither format finds files of its own beside them. ONNX could still name some (external
data), by paths of its choice: refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import FILE_MAX_BYTES, Format
from edge_ad.errors import GraphFormatError

GRAPH_DEPTH = 16  # graphs inside attributes of nodes inside graphs; ours have none
_XML_STARTS = (b"<?xml", b"<net")


@dataclass(frozen=True)
class GraphFiles:
    """What an engine compiles.

    Attributes:
        name: of the file, for messages.
        model: an IR's XML, or a whole ONNX model.
        weights: an IR's constants, uint8 (bytes,); empty for ONNX.
    """

    name: str
    model: bytes
    weights: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)

    @classmethod
    def read(cls, path: Path, graph_format: Format) -> GraphFiles:
        """A graph that belongs to no bundle yet: ``path``, and for an IR the .bin beside it. See `check_graph`."""
        constants = path.with_suffix(".bin")
        has_weights = graph_format is Format.OPENVINO and constants.is_file()
        weights = [read_array(constants)] if has_weights else []
        return check_graph(cls(path.name, path.read_bytes(), *weights), graph_format)


def read_array(path: Path, most_bytes: int = FILE_MAX_BYTES) -> NDArray[np.uint8]:
    """The file's first bytes, uint8, in memory of their own; numpy's large pages cost a quarter of those of `bytes`."""
    with path.open("rb", buffering=0) as file:
        content = np.empty(min(os.fstat(file.fileno()).st_size, most_bytes), np.uint8)
        at = 0
        while at < len(content) and (count := file.readinto(content.data[at:])):  # Linux reads 2 GiB at a time
            at += count
    return content[:at]


def check_graph(graph: GraphFiles, graph_format: Format) -> GraphFiles:
    """``graph``, if it is of its format and needs no other file.

    Raises:
        GraphFormatError: not an IR, or one with a document type; not an ONNX model, or one with external data.
    """
    if graph_format is Format.OPENVINO:
        # OpenVINO chooses a reader by content and has others: of ONNX, TensorFlow, Paddle, PyTorch.
        if not graph.model.startswith(_XML_STARTS):
            raise GraphFormatError(f"{graph.name}: not an OpenVINO IR; export the bundle again")
        try:
            graph.model.decode()
        except UnicodeDecodeError as error:
            raise GraphFormatError(f"{graph.name}: not UTF-8 ({error}); export the bundle again") from error
        if b"<!" in graph.model:
            raise GraphFormatError(f"{graph.name}: an IR has no document type, entities or comments; export it again")
        return graph
    try:
        has_external = _has_external_data(memoryview(graph.model), "model", GRAPH_DEPTH)
    except (ValueError, IndexError) as error:
        raise GraphFormatError(f"{graph.name}: not an ONNX model ({error}); export the bundle again") from error
    if has_external:
        raise GraphFormatError(
            f"{graph.name}: refers to data outside the file; a bundle's ONNX graphs hold all of theirs"
        )
    return graph


# Which fields of a message lead to tensors, and to what kind of message. Source: onnx.proto3 of ONNX 1.23.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are not in ONNX


def _has_external_data(message: memoryview, kind: str, depth: int) -> bool:
    """Whether a tensor anywhere below ``message`` says that its values lie in another file."""
    if depth < 0:
        raise ValueError("graphs are nested too deeply")
    children = _CHILDREN[kind]
    for number, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        child = children.get(number)
        if child is None:
            continue
        if isinstance(value, int):
            raise ValueError(f"field {number} of a {kind} is a number")
        if _has_external_data(value, child, depth - (child == "graph")):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field of a protobuf message, in order; `ValueError` or `IndexError` where malformed."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        value: memoryview | int
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            value, at = 0, at + (8 if wire == _FIXED64 else 4)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise ValueError("it ends within a field")
        yield field, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
