"""INT8: a ResNet18 with random weights on structured tiles; integers really in the graph, and little lost."""

from collections import Counter

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from tiny_bundle import onnx_shared, openvino_shared
from tiny_run import scene

from edge_ad.bundle.manifest import Format
from edge_ad.exporters.export import WRITERS
from edge_ad.exporters.quantisation import calibration_tiles, quantise, quantise_head
from edge_ad.exporters.sensitive import copying_convolutions, sensitive_convolutions
from edge_ad.methods import create_model
from edge_ad.methods.tile_model import TileStream
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session
from edge_ad.runtime.telemetry import no_telemetry
from edge_ad.tiling import TileGrid
from edge_ad.training.torch_graph import head_graph, shared_graph

TILE = (32, 48)
# Of ResNet18 down to layer3, the stem not counted: 3 stages of 4, two projections, and the only choice of channels that
# is as large
CONVOLUTIONS = 14 + 1
STEM_SHAPE = (64, 3, 7, 7)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return shared_graph(create_model("padim", TILE, backbone="resnet18", weights="none", dimensions=20))


def feeds(count):
    return [{"image": tile[None]} for tile in scene(count, TILE)]


@pytest.fixture(scope="module", params=list(Format))
def quantised(request, graph, tmp_path_factory):
    """(format, file, size in float32) of the extractor quantised on 24 tiles."""
    graph_format, folder = request.param, tmp_path_factory.mktemp("int8")
    writer = WRITERS[graph_format]
    whole = sum(path.stat().st_size for path in writer.write(writer.convert(graph), folder / "whole", half=False))
    converted = quantise(writer.convert(graph), feeds(24), graph_format)
    paths = writer.write(converted, folder / "int8", half=True)
    return graph_format, paths, whole


def test_every_convolution_but_the_stem_is_integer(quantised):
    graph_format, paths, _ = quantised
    if graph_format is Format.OPENVINO:
        model = ov.Core().read_model(paths[0])
        operations = Counter(op.get_type_name() for op in model.get_ops())
        assert operations["FakeQuantize"] >= CONVOLUTIONS  # activations
        weights = [op for op in model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) == 4]
        integer = [op for op in weights if op.get_element_type().get_type_name() == "i8"]
        floating = [tuple(op.shape) for op in weights if op.get_element_type().is_real()]
    else:
        model = onnx.load(paths[0])
        operations = Counter(node.op_type for node in model.graph.node)
        assert operations["QuantizeLinear"] >= CONVOLUTIONS
        assert operations["DequantizeLinear"] >= 2 * CONVOLUTIONS
        weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
        integer = [tensor for tensor in weights if tensor.data_type == onnx.TensorProto.INT8]
        floating = [tuple(tensor.dims) for tensor in weights if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert len([op for op in integer if np.prod(getattr(op, "shape", None) or op.dims) > 1000]) == CONVOLUTIONS
    assert floating.count(STEM_SHAPE) == 1


@pytest.mark.parametrize("graph_format", Format)
def test_the_stem_is_what_reads_the_image(graph, graph_format):
    (name,) = sensitive_convolutions(model := WRITERS[graph_format].convert(graph), graph_format)
    if graph_format is Format.OPENVINO:
        (node,) = [op for op in model.get_ops() if op.get_friendly_name() == name]
        weights = tuple(node.input(1).get_shape())
    else:
        (node,) = [node for node in model.graph.node if node.name == name]
        (weights,) = [tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name == node.input[1]]
    assert weights == STEM_SHAPE


@pytest.mark.parametrize("graph_format", Format)
def test_depthwise_convolutions_are_sensitive_and_so_is_each_networks_stem(graph_format):
    """MixedTeacher's: a ResNet18 cut before its blocks, and an EfficientNet-B0 to block 6, with 15 depthwise ones."""
    shared = shared_graph(create_model("mixed_teacher", (64, 96), weights="none"))
    assert len(sensitive_convolutions(WRITERS[graph_format].convert(shared), graph_format)) == 2 + 15


def test_a_quarter_of_the_size(quantised):
    _, paths, whole = quantised
    assert sum(path.stat().st_size for path in paths) < 0.3 * whole


def test_features_are_close(quantised, graph):
    """8 bits per tensor and channel: 15 layers of 1/256 roundings of either sign add up to a few percent."""
    graph_format, paths, _ = quantised
    tiles = scene(8, TILE, seed=1)
    with torch.no_grad():
        (expected,) = (tensor.numpy() for tensor in graph.module(torch.from_numpy(tiles)))
    session = open_session(paths[0], graph_format, "CPU", precision=ExecutionPrecision.F32, batch_size=8)
    got = np.array(session.fetch(session.run({"image": tiles})["embedding"]))
    session.close()
    relative = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 1e-4 < relative < 0.05  # not float either


@pytest.mark.parametrize("graph_format", Format)
def test_what_looks_for_once_unlike_the_rest_is_not_cut_off(graph, graph_format, tmp_path):
    """One of 24 calibration tiles has eight times the contrast of the others, as a defect may: it keeps its features.

    Ranges that end at the mean of all tiles' extremes put them off by two fifths.
    """
    writer, tiles = WRITERS[graph_format], 112 + scene(24, TILE) // 8
    tiles[11] = scene(24, TILE)[11]
    path = writer.write(
        quantise(writer.convert(graph), [{"image": tile[None]} for tile in tiles], graph_format),
        tmp_path / "int8",
        half=True,
    )[0]
    with torch.no_grad():
        expected = graph.module(torch.from_numpy(tiles[11:12]))[0].numpy()
    session = open_session(path, graph_format, "CPU", precision=ExecutionPrecision.F32, batch_size=1)
    found = np.array(session.fetch(session.run({"image": tiles[11:12]})["embedding"]))
    session.close()
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_quantising_is_silent(graph, capfd):
    quantise(WRITERS[Format.OPENVINO].convert(graph), feeds(2), Format.OPENVINO)
    assert capfd.readouterr().out == ""


def test_biases_are_corrected_exactly_where_the_engine_can(monkeypatch, tmp_path):
    """From layer statistics, which keeps less of the ranking, in ONNX and in heads alone."""
    with no_telemetry():
        import nncf
    asked = []
    monkeypatch.setattr(nncf, "quantize", lambda model, _, **options: asked.append(options) or model)
    models = {
        Format.OPENVINO: ov.Core().read_model(openvino_shared(tmp_path / "shared", TILE)[0]),
        Format.ONNX: onnx.load(onnx_shared(tmp_path / "shared", TILE)[0]),
    }
    for graph_format, model in models.items():
        assert quantise(model, feeds(1), graph_format) is model
        assert quantise_head(model, feeds(1), graph_format) is model
    assert [options["fast_bias_correction"] for options in asked] == [False, True, True, True]


# --- what it is calibrated on -----------------------------------------------------------------------------------------


def numbered(images, grid):
    """Images whose every tile is filled with its own number, location-major: what `calibration_tiles` is to draw."""
    made = np.zeros((images, *grid.image_size, 3), np.uint8)
    for index, location in enumerate(grid.locations):
        rows, cols = grid.window(location)
        for image in range(images):
            made[image, rows, cols] = index * images + image
    return made


@pytest.mark.parametrize("count", [1, 5, 9, 17, 45, 300])
def test_tiles_are_drawn_evenly_over_locations_and_images(count):
    grid = TileGrid((12, 15), (4, 5), (4, 5))  # 9 locations
    images = numbered(5, grid)
    tiles = calibration_tiles(TileStream(images, grid, grid.locations, lambda image: (), 2), count)
    assert tiles.shape == (min(count, 45), 4, 5, 3)
    numbers = tiles[:, 0, 0, 0].astype(int)
    assert (tiles == numbers[:, None, None, None]).all()
    assert len(set(numbers)) == len(numbers)
    per_location = Counter(numbers // 5)
    if count >= 9:
        assert len(per_location) == 9
        assert max(per_location.values()) - min(per_location.values()) <= 1
    if count >= 5:
        assert len(Counter(numbers % 5)) >= 3


@pytest.mark.parametrize("graph_format", Format)
def test_averages_at_the_edge_of_a_tile_are_those_of_float(graph_format, tmp_path):
    """Zeros around a map count in its local averages, in int8 as in float: without them an edge grows by a half."""
    torch.manual_seed(0)
    graph = shared_graph(create_model("patchcore", TILE, backbone="tf_efficientnet_lite0", weights="none"))
    writer = WRITERS[graph_format]
    path = writer.write(quantise(writer.convert(graph), feeds(8), graph_format), tmp_path / "int8", half=True)[0]
    tiles = scene(3, TILE, seed=4)
    with torch.no_grad():
        expected = graph.module(torch.from_numpy(tiles))[0].numpy()
    session = open_session(path, graph_format, "CPU", precision=ExecutionPrecision.F32, batch_size=3)
    found = np.array(session.fetch(session.run({"image": tiles})["embedding"]))
    session.close()
    error = np.abs(found - expected).mean((0, 3))
    assert error[0].mean() < 2 * error[1:-1, 1:-1].mean()


@pytest.mark.parametrize("graph_format", Format)
def test_in_a_head_convolutions_that_copy_channels_stay_in_float(graph_format, tmp_path):
    """FastFlow's permutations, 4 in each of 7 of 8 steps of 3 layers, beside 3 convolutions that compute per step."""
    torch.manual_seed(0)
    method = create_model("fastflow", TILE, backbone="resnet18", weights="none", conv3x3_only=False)
    graph = head_graph(method, method.for_engines(method.new_head().eval()), shared_graph(method))
    model = WRITERS[graph_format].convert(graph)
    copying = copying_convolutions(model, graph_format)
    assert len(copying) == 3 * 7 * 4
    samples = [{spec.name: np.random.default_rng(1).random(spec.shape, np.float32) for spec in graph.inputs}]
    path = WRITERS[graph_format].write(quantise_head(model, samples, graph_format), tmp_path / "int8", half=True)[0]
    if graph_format is Format.OPENVINO:
        nodes = [op for op in ov.Core().read_model(path).get_ops() if op.get_type_name() == "Convolution"]
        fed = {op.get_friendly_name(): op.input_value(0).get_node().get_type_name() for op in nodes}
        in_int8 = {name for name, source in fed.items() if source == "FakeQuantize"}
    else:
        nodes = onnx.load(path).graph.node
        integer = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
        fed = {node.name: node.input[0] for node in nodes if node.op_type == "Conv"}
        in_int8 = {name for name, source in fed.items() if source in integer}
    assert len(fed) == 3 * (8 * 3 + 7 * 4)
    assert in_int8 == set(fed) - set(copying)
