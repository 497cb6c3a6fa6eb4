"""A whole valid bundle in a few milliseconds, in either format, and the same arithmetic in plain numpy.

Graphs: ``shared`` gives the image's mean over channels, divided by 255, as ``features`` (N, 1, h, w). A head gives
``anomaly_map = gain * |features - image_red / 255| + offset`` and ``pred_score`` its maximum. Gain and offset differ by
location, so that a head in the wrong place is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.files import file_entry, with_digest, write_manifest
from edge_ad.bundle.manifest import (
    SCHEMA_VERSION,
    Format,
    Golden,
    Graph,
    InputSpec,
    Manifest,
    Merge,
    Method,
    Normalisation,
    NormalisationStage,
    Parity,
    Precision,
    Provenance,
    Role,
    Scale,
    ScoreMerge,
)
from edge_ad.imaging import encode_png
from edge_ad.setups import Setup, Sharing
from edge_ad.tiling import Location, Size

IMAGE_SIZE, TILE_SIZE, STRIDE = (46, 58), (23, 29), (23, 29)


def tiny_setup(
    image_size: Size = IMAGE_SIZE,
    tile_size: Size = TILE_SIZE,
    stride: Size = STRIDE,
    sharing: Sharing = Sharing.LOCATION,
) -> Setup:
    return Setup("custom", image_size, tile_size, stride, sharing)


def tiny_manifest(setup: Setup | None = None, **changes: Any) -> Manifest:
    """A manifest without graphs or golden images."""
    return replace(
        Manifest(
            schema_version=SCHEMA_VERSION,
            format=Format.OPENVINO,
            precision=Precision.FP32,
            method=Method("padim", "resnet18", {"components": 50}),
            setup=setup or tiny_setup(),
            input=InputSpec("rgb", "area"),
            merge=Merge(ScoreMerge.MEAN, 2.0, 0.1),
            normalisation=Normalisation(NormalisationStage.IMAGE, "fixed", Scale(0.2, 1.2), Scale(0.1, 0.9), (), ()),
            graphs=(),
            golden=(),
            parity=(Parity("f32", "CPU", 2, 0.0, 0.0, 0.0, 1.0, 0),),
            parity_tolerance=0.01,
            provenance=Provenance("2026-01-02T03:04:05+00:00", {"edge-ad": "0.1.0"}, 0, "ab" * 32, 12, "none"),
        ),
        **changes,
    )


def head_constants(location: Location) -> tuple[float, float]:
    """(gain, offset) of a head."""
    return 1.0 + 0.5 * location.row + 0.25 * location.col, 0.1 * location.row + 0.01 * location.col


def expected_tile(tile: NDArray[np.uint8], model: Location) -> tuple[NDArray[np.float64], float]:
    """(map (h, w), score) of a tile uint8 (h, w, 3), in float64."""
    gain, offset = head_constants(model)
    pixels = tile.astype(np.float64) / 255
    anomaly_map = gain * np.abs(pixels.mean(2) - pixels[:, :, 0]) + offset
    return anomaly_map, float(anomaly_map.max())


def write_tiny_bundle(folder: Path, manifest: Manifest | None = None, graph_format: Format = Format.OPENVINO) -> Path:
    """Write graphs and golden images of ``manifest`` to ``folder`` and return it.

    Golden scores are those of `expected_score`, so they hold at normalisation stages "image" and "none" only.
    """
    manifest = manifest or tiny_manifest()
    setup = manifest.setup
    (folder / "graphs").mkdir(parents=True)
    (folder / "golden").mkdir()
    write_shared, write_head = WRITERS[graph_format]
    graphs = [_graph(folder, Role.SHARED, None, write_shared(folder / "graphs" / "shared", setup.tile_size))]
    for location in setup.model_locations:
        files = write_head(folder / "graphs" / location.name, setup.tile_size, *head_constants(location))
        graphs.append(_graph(folder, Role.HEAD, tuple(location), files))
    golden = []
    for label, image in (("normal", np.full((*setup.image_size, 3), 90, np.uint8)), ("anomalous", some_image(setup))):
        (folder / "golden" / f"{label}.png").write_bytes(encode_png(image))
        golden.append(Golden(label, file_entry(folder, f"golden/{label}.png"), expected_score(image, manifest)))
    write_manifest(folder, replace(manifest, format=graph_format, graphs=tuple(graphs), golden=tuple(golden)))
    return folder


def some_image(setup: Setup, seed: int = 0) -> NDArray[np.uint8]:
    """Noise uint8 (H, W, 3) at the setup's image size."""
    return np.random.default_rng(seed).integers(0, 256, (*setup.image_size, 3), dtype=np.uint8)


def expected_score(image: NDArray[np.uint8], manifest: Manifest) -> float:
    """The raw image score, in float64."""
    setup = manifest.setup
    scores = [
        expected_tile(tile, setup.model_of(location))[1]
        for location, tile in zip(setup.grid.locations, setup.grid.crop(image), strict=True)
    ]
    return float(np.mean(scores) if manifest.merge.score is ScoreMerge.MEAN else np.max(scores))


def _graph(folder: Path, role: Role, location: tuple[int, int] | None, files: list[Path]) -> Graph:
    entries = tuple(file_entry(folder, file.relative_to(folder).as_posix()) for file in files)
    return Graph(role, location, Precision.FP32, entries, role is Role.HEAD, 2, 1000)


def openvino_shared(stem: Path, tile_size: Size) -> list[Path]:
    from openvino import opset13 as ops

    image = _ov_input("image", [-1, *tile_size, 3], np.uint8)
    pixels = ops.transpose(ops.convert(image, "f32"), np.array([0, 3, 1, 2]))
    mean = ops.reduce_mean(pixels, np.array([1]), keep_dims=True)
    return _ov_save(stem, [image], {"features": ops.multiply(mean, np.float32(1 / 255))})


def openvino_head(stem: Path, tile_size: Size, gain: float, offset: float) -> list[Path]:
    from openvino import opset13 as ops

    image = _ov_input("image", [-1, *tile_size, 3], np.uint8)
    features = _ov_input("features", [-1, 1, *tile_size], np.float32)
    pixels = ops.transpose(ops.convert(image, "f32"), np.array([0, 3, 1, 2]))
    red = ops.multiply(ops.gather(pixels, np.array([0]), np.array(1)), np.float32(1 / 255))
    distance = ops.abs(ops.subtract(features, red))
    anomaly_map = ops.add(ops.multiply(distance, np.float32(gain)), np.float32(offset))
    score = ops.reduce_max(anomaly_map, np.array([1, 2, 3]), keep_dims=False)
    return _ov_save(stem, [features, image], {"pred_score": score, "anomaly_map": anomaly_map})


def onnx_shared(stem: Path, tile_size: Size) -> list[Path]:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "scale"], ["features"]),
    ]
    return _onnx_save(
        stem,
        nodes,
        [_onnx_info("image", TensorProto.UINT8, (*tile_size, 3))],
        [_onnx_info("features", TensorProto.FLOAT, (1, *tile_size))],
        {"scale": np.float32(1 / 255)},
    )


def onnx_head(stem: Path, tile_size: Size, gain: float, offset: float) -> list[Path]:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["pixels", "first"], ["red255"], axis=1),
        helper.make_node("Mul", ["red255", "scale"], ["red"]),
        helper.make_node("Sub", ["features", "red"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Mul", ["distance", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pred_score"], axes=[1, 2, 3], keepdims=0),
    ]
    return _onnx_save(
        stem,
        nodes,
        [
            _onnx_info("features", TensorProto.FLOAT, (1, *tile_size)),
            _onnx_info("image", TensorProto.UINT8, (*tile_size, 3)),
        ],
        [
            _onnx_info("pred_score", TensorProto.FLOAT, ()),
            _onnx_info("anomaly_map", TensorProto.FLOAT, (1, *tile_size)),
        ],
        {
            "scale": np.float32(1 / 255),
            "first": np.array([0], np.int64),
            "gain": np.float32(gain),
            "offset": np.float32(offset),
        },
    )


WRITERS = {Format.OPENVINO: (openvino_shared, openvino_head), Format.ONNX: (onnx_shared, onnx_head)}


def _ov_input(name: str, shape: list[int], dtype: Any) -> Any:
    from openvino import opset13 as ops

    parameter = ops.parameter(shape, dtype, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _ov_save(stem: Path, inputs: list[Any], outputs: dict[str, Any]) -> list[Path]:
    import openvino as ov

    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
    path = stem.with_suffix(".xml")
    ov.save_model(ov.Model(list(outputs.values()), inputs, stem.name), path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _onnx_info(name: str, dtype: int, shape: tuple[int, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, ["batch", *shape])


def _onnx_save(stem: Path, nodes: Any, inputs: Any, outputs: Any, constants: dict[str, Any]) -> list[Path]:
    import onnx
    from onnx import helper, numpy_helper

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, stem.name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = stem.with_suffix(".onnx")
    onnx.save(model, path)
    return [path]


def edit_manifest(bundle: Path, change: Callable[[Any], object]) -> None:
    """Change what manifest.json says, its digest with it."""
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    value.pop("digest", None)
    change(value)
    path.write_text(json.dumps(with_digest(value)))
