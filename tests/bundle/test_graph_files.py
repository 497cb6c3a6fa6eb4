"""Graphs that name other files never reach an engine; read_array against `Path.read_bytes`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import WRITERS, some_image

import edge_ad
from edge_ad.bundle.graph_files import GRAPH_DEPTH, GraphFiles, check_graph, read_array
from edge_ad.bundle.manifest import Format
from edge_ad.errors import ChangedFileError, GraphFormatError

Write = Callable[..., Path]


def _external(location: str = "secret.bin") -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _model(*initializers: Any, nodes: Any = ()) -> Any:
    return helper.make_model(helper.make_graph(list(nodes), "g", [], [], list(initializers)))


def _nested(tensor: Any, depth: int) -> Any:
    """A model whose ``tensor`` is the constant of a graph ``depth`` branches down."""
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "leaf", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "branch", [], [])
    return helper.make_model(graph)


def _in_function(tensor: Any) -> Any:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model = _model()
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    return model


def _sparse(tensor: Any) -> Any:
    model = _model()
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


PLACES = {
    "initializer": _model,
    "attribute": lambda tensor: _nested(tensor, 0),
    "branch": lambda tensor: _nested(tensor, 3),
    "function": _in_function,
    "sparse": _sparse,
    "a list of tensors": lambda tensor: _model(nodes=[helper.make_node("X", [], ["y"], values=[tensor])]),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_it_hides(place: str) -> None:
    harmless = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    assert check_graph(GraphFiles("a.onnx", PLACES[place](harmless).SerializeToString()), Format.ONNX)
    with pytest.raises(GraphFormatError, match=r"a.onnx: refers to data outside the file"):
        check_graph(GraphFiles("a.onnx", PLACES[place](_external()).SerializeToString()), Format.ONNX)


def test_half_of_what_says_external_is_enough() -> None:
    """Engines differ in which of the two fields they go by."""
    for field in ("external_data", "data_location"):
        tensor = _external()
        tensor.ClearField(field)
        with pytest.raises(GraphFormatError, match="outside the file"):
            check_graph(GraphFiles("a.onnx", _model(tensor).SerializeToString()), Format.ONNX)


def test_a_graph_in_two_parts_is_read_in_two_parts() -> None:
    """Protobuf merges a message that comes twice: the second part must be looked at too."""
    content = _model().SerializeToString() + _model(_external()).SerializeToString()
    with pytest.raises(GraphFormatError, match="outside the file"):
        check_graph(GraphFiles("a.onnx", content), Format.ONNX)


def test_nesting_has_an_end() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    for depth, passes in ((GRAPH_DEPTH - 1, True), (GRAPH_DEPTH + 1, False)):
        graph = GraphFiles("a.onnx", _nested(tensor, depth).SerializeToString())
        if passes:
            check_graph(graph, Format.ONNX)
        else:
            with pytest.raises(GraphFormatError, match="nested too deeply"):
                check_graph(graph, Format.ONNX)


@pytest.mark.parametrize(
    "content",
    [b"\x3a", b"\x3a\x7f\x00", b"\x38\x01", b"\x3b", b"\x3c", b"\xff" * 11, b"\x00\x00\x00\x00ORTM", b"<?xml?>"],
    ids=["no length", "short", "graph as number", "group", "end of group", "long number", "ORT format", "XML"],
)
def test_what_is_no_onnx(content: bytes) -> None:
    with pytest.raises(GraphFormatError, match=r"a.onnx: not an ONNX model \("):
        check_graph(GraphFiles("a.onnx", content), Format.ONNX)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_model().SerializeToString(), "not an OpenVINO IR"),  # OpenVINO would read it, and follow its paths
        (b"", "not an OpenVINO IR"),
        (b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "b">]><net/>', "no document type, entities or comments"),
    ],
)
def test_what_is_no_ir(content: bytes, message: str) -> None:
    with pytest.raises(GraphFormatError, match=message):
        check_graph(GraphFiles("a.xml", content), Format.OPENVINO)


@pytest.mark.parametrize("graph_format", Format)
def test_what_our_writers_write_passes(tmp_path: Path, graph_format: Format) -> None:
    path = WRITERS[graph_format][0](tmp_path / "g", (23, 29))[0]
    graph = GraphFiles.read(path, graph_format)
    assert (graph.name, graph.model) == (path.name, path.read_bytes())
    constants = path.with_suffix(".bin")
    assert graph.weights.tobytes() == (constants.read_bytes() if constants.exists() else b"")


@pytest.mark.parametrize("size", [0, 1, 4099])
def test_read_array_is_what_is_in_the_file(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "a").write_bytes(content)
    assert read_array(tmp_path / "a").tobytes() == content
    assert read_array(tmp_path / "a", 7).tobytes() == content[:7]


@pytest.mark.parametrize("graph_format", Format)
def test_a_file_that_changes_after_it_was_hashed_changes_nothing(tiny_bundle: Write, graph_format: Format) -> None:
    """An engine that opens an IR by its path computes with the file: here the verdict would change, or Python end."""
    bundle = tiny_bundle(graph_format=graph_format)
    detector = edge_ad.load(bundle)
    image = some_image(detector.manifest.setup)[None]
    before = detector.raw(image).maps
    for file in (bundle / "graphs").iterdir():
        with file.open("r+b") as target:
            target.write(b"\x7f" * file.stat().st_size)
    np.testing.assert_array_equal(detector.raw(image).maps, before)
    for file in (bundle / "graphs").iterdir():
        file.write_bytes(b"")
    np.testing.assert_array_equal(detector.raw(image).maps, before)
    shutil.rmtree(bundle)
    np.testing.assert_array_equal(detector.raw(image).maps, before)


def test_a_file_that_changes_between_the_look_and_the_load_is_refused(
    tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and sizes are looked at first; the hash is that of the bytes the engine gets."""
    from edge_ad.bundle import graph_reader

    bundle = tiny_bundle()
    weights = bundle / "graphs" / "r01_c01.bin"
    read_graph, asked = graph_reader.read_graph, []

    def read(root: Path, graph: Any, graph_format: Format) -> GraphFiles:
        asked.append(graph)
        if len(asked) == 3:
            weights.write_bytes(weights.read_bytes()[::-1])
        return read_graph(root, graph, graph_format)

    monkeypatch.setattr(graph_reader, "read_graph", read)
    with pytest.raises(ChangedFileError, match=r"graphs/r01_c01.bin has another SHA-256"):
        edge_ad.load(bundle)
