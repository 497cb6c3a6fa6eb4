"""ONNX and IR against the torch module they were made from: numbers, names, batches, sizes, and what is stored."""

import locale

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from file_system import file_size_limit
from onnx import TensorProto, numpy_helper
from tiny_run import scene, tile_setup, tiny_run

from edge_ad.bundle.manifest import Format
from edge_ad.exporters import onnx_graph, openvino_ir
from edge_ad.exporters.export import WRITERS
from edge_ad.methods import create_model
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session
from edge_ad.tiling import Location
from edge_ad.training.torch_graph import head_graph, shared_graph

SETUP = tile_setup((32, 96), (32, 48))  # rectangular tiles: a swapped axis would not fit
# Engines sum products in another order than torch: relative errors of a few float32 roundings (6e-8) per layer, 1e-6 of
# the range measured over the extractor's 12 convolutions and over a head's products.
FP32_TOLERANCE = 2e-5
# Half-precision storage rounds every weight by up to 2^-11 = 5e-4 of itself
FP16_TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """(shared, head) of a trained run."""
    run, _ = tiny_run(tmp_path_factory.mktemp("run") / "run", SETUP)
    model = run.model()
    shared = shared_graph(model)
    return shared, head_graph(model, run.head(model, Location(0, 1)), shared)


@pytest.fixture(scope="module")
def files(graphs, tmp_path_factory):
    """Path of every (format, role, half), written once."""
    folder = tmp_path_factory.mktemp("graphs")
    found = {}
    for graph_format, writer in WRITERS.items():
        for role, graph in zip(("shared", "head"), graphs, strict=True):
            for half in (False, True):
                paths = writer.write(writer.convert(graph), folder / f"{role}-{half}", half=half)
                assert all(path.is_file() for path in paths)
                found[graph_format, role, half] = paths
    return found


def run(path, graph_format, feeds, batch_size):
    session = open_session(path, graph_format, "CPU", precision=ExecutionPrecision.F32, batch_size=batch_size)
    outputs = session.run(feeds)
    result = {name: np.array(session.fetch(handle)) for name, handle in outputs.items()}
    session.close()
    return result


def compare(paths, graph_format, graph, batch_size, tolerance):
    tiles = scene(batch_size, SETUP.tile_size, seed=3)
    if graph.inputs[0].name == "image":
        feeds = {"image": tiles}
    else:
        rng = np.random.default_rng(0)
        feeds = {spec.name: rng.normal(size=(batch_size, *spec.shape[1:])).astype(np.float32) for spec in graph.inputs}
    with torch.no_grad():
        expected = graph.module(*(torch.from_numpy(feeds[spec.name]) for spec in graph.inputs))
    span = max(np.ptp(tensor.numpy()) for tensor in expected)  # a score lies in its map's range
    got = run(paths[0], graph_format, feeds, batch_size)
    assert got.keys() == {spec.name for spec in graph.outputs}
    for spec, tensor in zip(graph.outputs, expected, strict=True):
        assert got[spec.name].shape == (batch_size, *spec.shape[1:])
        assert got[spec.name].dtype == spec.dtype
        error = np.abs(got[spec.name] - tensor.numpy()).max() / span
        assert error <= tolerance, (spec.name, error)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("role", ["shared", "head"])
@pytest.mark.parametrize("graph_format", Format)
def test_float32_graphs_compute_what_torch_computes(files, graphs, graph_format, role, batch_size):
    graph = graphs[role == "head"]
    compare(files[graph_format, role, False], graph_format, graph, batch_size, FP32_TOLERANCE)


@pytest.mark.parametrize("role", ["shared", "head"])
@pytest.mark.parametrize("graph_format", Format)
def test_half_precision_storage(files, graphs, graph_format, role):
    graph = graphs[role == "head"]
    compare(files[graph_format, role, True], graph_format, graph, 2, FP16_TOLERANCE)
    whole, half = (sum(path.stat().st_size for path in files[graph_format, role, h]) for h in (False, True))
    assert 0.4 < (whole - half) / (4 * graph.parameters) < 0.51  # small tensors stay in float32


@pytest.mark.parametrize("role", ["shared", "head"])
def test_an_ir_stores_what_was_asked_for(files, role):
    def types(half):
        model = ov.Core().read_model(files[Format.OPENVINO, role, half][0])
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant" and np.prod(op.shape) >= 100]
        return {op.get_element_type().get_type_name() for op in constants} & {"f32", "f16"}

    assert types(half=False) == {"f32"}
    assert types(half=True) == {"f16"}


@pytest.mark.parametrize("role", ["shared", "head"])
def test_an_onnx_file_stores_what_was_asked_for(files, role):
    def types(half):
        model = onnx.load(files[Format.ONNX, role, half][0])
        large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 1024]
        return {tensor.data_type for tensor in large} & {TensorProto.FLOAT, TensorProto.FLOAT16}

    assert types(half=False) == {TensorProto.FLOAT}
    assert types(half=True) == {TensorProto.FLOAT16}


@pytest.mark.parametrize("half", [False, True])
def test_onnx_files_are_valid_and_self_contained(files, half):
    (path,) = files[Format.ONNX, "head", half]
    onnx.checker.check_model(onnx.load(path, load_external_data=False), full_check=True)


def test_halving_rounds_to_nearest():
    values = np.linspace(-3, 3, 2048, dtype=np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2048])],
            [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2048])],
            [numpy_helper.from_array(values, "w"), numpy_helper.from_array(values[:5], "few")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", onnx_graph.OPSET)],
    )
    onnx_graph.halve_storage(model)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(stored["w.half"], values.astype(np.float16))
    assert stored["few"].dtype == np.float32
    reference = onnx.reference.ReferenceEvaluator(model).run(None, {"x": np.zeros(2048, np.float32)})[0]
    assert np.array_equal(reference, values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("largest", "stored"), [(65504, np.float16), (-65504, np.float16), (-1e5, np.float32)])
def test_what_half_precision_cannot_hold_stays_whole(largest, stored):
    values = np.zeros(2048, np.float32)
    values[7] = largest
    graph = onnx.GraphProto(initializer=[numpy_helper.from_array(values, "w")])
    model = onnx.ModelProto(graph=graph)
    onnx_graph.halve_storage(model)
    (tensor,) = model.graph.initializer
    assert numpy_helper.to_array(tensor).dtype == stored
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.float32), values)
    assert [node.output[0] for node in model.graph.node] == (["w"] if stored is np.float16 else [])


@pytest.mark.parametrize("role", ["shared", "head"])
@pytest.mark.parametrize("graph_format", Format)
def test_only_the_batch_is_dynamic(files, graphs, graph_format, role):
    graph, path = graphs[role == "head"], files[graph_format, role, False][0]
    if graph_format is Format.OPENVINO:
        model = ov.Core().read_model(path)
        shapes = {port.any_name: list(port.partial_shape) for port in [*model.inputs, *model.outputs]}
        assert all(shape[0].is_dynamic for shape in shapes.values())
        rest = {name: tuple(axis.get_length() for axis in shape[1:]) for name, shape in shapes.items()}
    else:
        values = onnx.load(path).graph
        dims = {value.name: value.type.tensor_type.shape.dim for value in [*values.input, *values.output]}
        assert {shape[0].dim_param for shape in dims.values()} == {onnx_graph.BATCH_AXIS}
        rest = {name: tuple(axis.dim_value for axis in shape[1:]) for name, shape in dims.items()}
    assert rest == {spec.name: spec.shape[1:] for spec in (*graph.inputs, *graph.outputs)}


def test_converting_is_silent(graphs, capfd):
    """Standard output belongs to the data."""
    onnx_graph.convert(graphs[1])
    openvino_ir.convert(graphs[1])
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("graph_format", Format)
def test_a_full_disk_is_an_oserror(graphs, tmp_path, graph_format):
    """Really: the process may write 2 kB per file. `staged_folder` turns an OSError into one line and cleans up."""
    writer = WRITERS[graph_format]
    converted = writer.convert(graphs[1])
    with file_size_limit(2_000), pytest.raises(OSError):
        writer.write(converted, tmp_path / "head", half=False)


def test_numbers_are_written_with_a_point_whatever_the_language(graphs, tmp_path, monkeypatch):
    """A desktop program sets its user's locale: then OpenVINO wrote "1,75" into an IR, and read it back as 1."""
    model, before = openvino_ir.convert(graphs[1]), locale.setlocale(locale.LC_ALL)
    save, during = ov.save_model, []

    def save_model(*arguments, **options):
        during.append(locale.setlocale(locale.LC_NUMERIC))
        save(*arguments, **options)

    monkeypatch.setattr(ov, "save_model", save_model)
    try:
        locale.setlocale(locale.LC_NUMERIC, "C.UTF-8")  # every other one is missing somewhere
        openvino_ir.write(model, tmp_path / "head", half=False)
        assert (during, locale.setlocale(locale.LC_NUMERIC)) == (["C"], "C.UTF-8")
    except locale.Error:
        pytest.skip("no locale C.UTF-8 here")
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_maps_turned_to_channels_last_are_the_same_maps(tmp_path):
    torch.manual_seed(0)
    method = create_model("fastflow", SETUP.tile_size, backbone="resnet18", weights="none")
    shared = shared_graph(method)
    head = head_graph(method, method.new_head().eval(), shared)
    images = {"image": scene(2, SETUP.tile_size)}
    found = {}
    for turned in ((), method.feature_names):
        paths = [
            openvino_ir.write(
                openvino_ir.channels_last(openvino_ir.convert(graph), turned),
                tmp_path / f"{role}-{len(turned)}",
                half=False,
            )[0]
            for role, graph in (("shared", shared), ("head", head))
        ]
        features = run(paths[0], Format.OPENVINO, images, 2)
        found[bool(turned)] = features, run(paths[1], Format.OPENVINO, features, 2)
    (plain, expected), (turned_features, outputs) = found[False], found[True]
    for name, feature in plain.items():
        np.testing.assert_allclose(turned_features[name], feature.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    for name, output in expected.items():
        np.testing.assert_allclose(outputs[name], output, rtol=1e-4, atol=1e-5)
