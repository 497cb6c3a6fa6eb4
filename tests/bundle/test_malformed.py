"""Bundles that somebody made badly on purpose, as recipes: what was done to a good one, and the error it must end in.

The files agree with the manifest's hashes, as a stranger's would. What the fuzzer of benchmarks/robustness finds is
added here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundle import edit_manifest

import edge_ad
from edge_ad.bundle.files import file_entry
from edge_ad.bundle.manifest import Format
from edge_ad.errors import BundleError, EdgeAdError, GraphFormatError, InferenceError, ManifestError
from edge_ad.imaging import write_png
from edge_ad.records import to_plain
from edge_ad.runtime.verify import verify_bundle

Write = Callable[..., Path]


def xml(old: str, new: str) -> Callable[[Path], None]:
    """The head's IR with ``old`` replaced."""

    def change(bundle: Path) -> None:
        path = bundle / "graphs" / "r01_c00.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def constants(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(bundle: Path) -> None:
        path = bundle / "graphs" / "r01_c00.bin"
        path.write_bytes(change(path.read_bytes()))

    return write


def model(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """The head's ONNX model, changed."""

    def write(bundle: Path) -> None:
        path = bundle / "graphs" / "r01_c00.onnx"
        loaded = onnx.load(path)
        change(loaded)
        path.write_bytes(loaded.SerializeToString())

    return write


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, change)


def content(name: str, new: bytes) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "graphs" / name).write_bytes(new) and None


def _add_external(loaded: Any) -> None:
    tensor = loaded.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _whole_numbers(loaded: Any) -> None:
    loaded.graph.node.append(helper.make_node("Cast", ["pred_score"], ["whole"], to=TensorProto.INT32))
    loaded.graph.output.append(helper.make_tensor_value_info("whole", TensorProto.INT32, ["batch"]))


def _huge(loaded: Any) -> None:
    """More zeros than there are addresses, in a hundred bytes."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**60])
    loaded.graph.initializer.append(shape)
    loaded.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    loaded.graph.node.insert(1, helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=0))
    loaded.graph.node[-1].input[0] = "sum"
    loaded.graph.node.insert(len(loaded.graph.node) - 1, helper.make_node("Add", ["most", "anomaly_map"], ["sum"]))


class Recipe(NamedTuple):
    graph_format: Format
    change: Callable[[Path], None]
    error: type[EdgeAdError]
    message: str


IR, ONNX = Format.OPENVINO, Format.ONNX
RECIPES = {
    "a thousand million tiles": Recipe(
        IR, manifest(lambda v: v["setup"].update(image_size=[2**16, 2**14], tile_size=[1, 1], stride=[1, 1])),
        ManifestError, "pixels; at most"),
    "one very long row of pixels": Recipe(
        IR, manifest(lambda v: v["setup"].update(image_size=[1, 2**27], tile_size=[1, 2], stride=[1, 1])),
        ManifestError, "tiles; at most 10000"),
    "tiles that are not those of the graphs": Recipe(
        IR, manifest(lambda v: v["setup"].update(tile_size=[22, 29], stride=[22, 29], image_size=[44, 58])),
        BundleError, "expected input"),
    "sizes of a thousand digits": Recipe(
        IR, manifest(lambda v: v["setup"].update(image_size=[10**1000, 58])), ManifestError, "setup.image_size"),
    "a threshold beyond the numbers": Recipe(
        IR, manifest(lambda v: v["normalisation"]["score"].update(threshold=10**400)), ManifestError, "finite"),
    "a seam as wide as the world": Recipe(
        IR, manifest(lambda v: v["merge"].update(seam_sigma_px=1e300)), ManifestError, "seam_sigma_px"),
    "three files of one graph": Recipe(
        IR, manifest(lambda v: v["graphs"][0]["files"].append(dict(v["graphs"][0]["files"][1], path="graphs/third"))),
        ManifestError, "1 to 2 files per openvino graph"),
    "one file named twice": Recipe(
        IR, manifest(lambda v: v["graphs"][1].update(files=v["graphs"][2]["files"])), ManifestError, "named twice"),
    "ONNX in place of an IR": Recipe(
        IR, content("r01_c00.xml", b"\x08\x09\x3a\x00"), GraphFormatError, "not an OpenVINO IR"),
    "a document type": Recipe(
        IR, xml("<net ", '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">]><net '), GraphFormatError, "no document type"),
    "a name that is no text": Recipe(
        IR, content("r01_c00.xml", b"<?xml version='1.0'?><net name='\xf4'/>"), GraphFormatError, "not UTF-8"),
    "an operation nobody knows": Recipe(IR, xml('type="Abs"', 'type="Exec"'), InferenceError, "r01_c00.xml"),
    "an operation of an extension": Recipe(
        IR, xml('type="Abs" version="opset1"', 'type="Abs" version="extension"'), InferenceError, "r01_c00.xml"),
    "constants beyond the end of the file": Recipe(
        IR, constants(lambda c: c[:-1]), InferenceError, "Incorrect weights"),
    "no constants": Recipe(IR, constants(lambda c: b""), InferenceError, "r01_c00.xml"),
    "an offset beyond the numbers": Recipe(
        IR, xml('offset="0"', f'offset="{2**64 - 8}"'), InferenceError, "r01_c00.xml"),
    "axes beyond the tensor": Recipe(IR, constants(lambda c: b"\x7f" * len(c)), InferenceError, "r01_c00.xml"),
    "half an IR": Recipe(
        IR, lambda b: (b / "graphs/shared.xml").write_bytes((b / "graphs/shared.xml").read_bytes()[:999]) and None,
        InferenceError, "shared.xml"),
    "an IR in place of ONNX": Recipe(
        ONNX, content("r01_c00.onnx", b"<?xml version='1.0'?><net/>"), GraphFormatError, "not an ONNX model"),
    "ONNX Runtime's own format": Recipe(
        ONNX, content("r01_c00.onnx", b"\x18\x00\x00\x00ORTM" + bytes(64)), GraphFormatError, "not an ONNX model"),
    "external data": Recipe(ONNX, model(_add_external), GraphFormatError, "data outside the file"),
    "a custom operation": Recipe(
        ONNX, model(lambda m: m.graph.node.add(op_type="Run", domain="evil", output=["y"])),
        InferenceError, "r01_c00.onnx"),
    "a model of another engine inside": Recipe(
        ONNX, model(lambda m: m.graph.node.append(
            helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="../x", embed_mode=0))),
        InferenceError, "r01_c00.onnx"),
    "an output of another type": Recipe(ONNX, model(_whole_numbers), GraphFormatError, "whole: tensor.int32."),
    "an empty model": Recipe(ONNX, content("r01_c00.onnx", b""), InferenceError, "r01_c00.onnx"),
    "outputs of other names": Recipe(
        ONNX, model(lambda m: m.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("distance", 1, ["batch", 1, 23, 29]))),
        BundleError, "unknown output distance"),
    "more zeros than there are addresses": Recipe(
        ONNX, model(_huge), InferenceError, "r01_c00.onnx|ConstantOfShape"),
    "a golden image of another size": Recipe(
        IR, lambda b: write_png(b / "golden/normal.png", np.zeros((3, 5, 3), np.uint8)),
        EdgeAdError, r"golden|expected 1 to 1 images"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_malformed_bundle_is_refused(tiny_bundle: Write, name: str) -> None:
    recipe = RECIPES[name]
    bundle = tiny_bundle(graph_format=recipe.graph_format)
    recipe.change(bundle)
    _hash_anew(bundle)
    with pytest.raises(recipe.error, match=recipe.message):
        _use(bundle)


@pytest.mark.parametrize("graph_format", Format)
def test_the_same_without_a_change_is_not(tiny_bundle: Write, graph_format: Format) -> None:
    bundle = tiny_bundle(graph_format=graph_format)
    _hash_anew(bundle)
    _use(bundle)


def _use(bundle: Path) -> None:
    from edge_ad.bundle.files import read_bundle

    with edge_ad.load(bundle, precision="f32") as detector:
        verify_bundle(detector, read_bundle(bundle))


def _hash_anew(bundle: Path) -> None:
    def hash_files(value: Any) -> None:
        files = [file for graph in value["graphs"] for file in graph["files"]]
        for entry in (*files, *(golden["file"] for golden in value["golden"])):
            if (bundle / entry["path"]).exists():
                entry.update(to_plain(file_entry(bundle, entry["path"])))

    edit_manifest(bundle, hash_files)
