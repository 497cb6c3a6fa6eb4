"""Heads that share one compiled graph, against numpy, and against each compiled for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from openvino import opset13 as op

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Format
from edge_ad.errors import OutputWriteError
from edge_ad.runtime.openvino_program import as_bfloat16
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session

F32 = ExecutionPrecision.F32
POSITIONS, ROWS, CHANNELS = 35, 3, 5
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3) / 8  # a dense layer, alike in all heads

Numbers = dict[str, NDArray[np.float32]]


def numbers(seed: int) -> Numbers:
    """Constants of a head, representable in half precision."""
    rng = np.random.default_rng(seed)
    shapes = {"mean": (CHANNELS, POSITIONS), "matrices": (POSITIONS, ROWS, CHANNELS), "gain": (POSITIONS,)}
    return {name: rng.normal(size=shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}


def write_head(path: Path, head: Numbers, table: NDArray[np.float32] = TABLE, *, half: bool = True) -> Path:
    """An IR of a head that is mostly a matrix per position, as exported: constants in half precision, if wanted."""
    features = op.parameter([-1, CHANNELS, POSITIONS], ov.Type.f32, "features")
    centred = op.subtract(features, op.constant(head["mean"]))
    projected = op.matmul(op.constant(head["matrices"]), op.transpose(centred, [2, 1, 0]), False, False)
    dense = op.matmul(op.constant(table), projected, False, False)  # (P, 4, N)
    output = op.multiply(op.transpose(op.reduce_sum(dense, [1]), [1, 0]), op.constant(head["gain"]))
    model = ov.Model([output], [features], "head")
    model.inputs[0].get_tensor().set_names({"features"})
    model.outputs[0].get_tensor().set_names({"scores"})
    ov.save_model(model, str(path), compress_to_fp16=half)
    return path


def expected(head: Numbers, features: NDArray[np.float32], table: NDArray[np.float32] = TABLE) -> NDArray[np.float32]:
    centred = features - head["mean"]
    projected = np.einsum("prc,ncp->npr", head["matrices"], centred)
    scores: NDArray[np.float32] = np.einsum("tr,npr->np", table, projected) * head["gain"]
    return scores


def opened(path: Path, **options: Any) -> Any:
    return open_session(path, Format.OPENVINO, "CPU", **({"precision": F32} | options))


def scores(session: Any, features: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = session.fetch(session.run({"features": features})["scores"]).copy()
    return found


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_heads_share_a_graph_and_keep_their_numbers(tmp_path: Path, half: bool, batch_size: int) -> None:
    heads = [numbers(seed) for seed in range(3)]
    paths = [write_head(tmp_path / f"{i}.xml", head, half=half) for i, head in enumerate(heads)]
    first = opened(paths[0], batch_size=batch_size)
    others = [opened(path, batch_size=batch_size, like=first) for path in paths[1:]]
    assert first.shared is not None
    assert all(other.shared is first.shared for other in others)
    features = np.random.default_rng(9).normal(size=(batch_size, CHANNELS, POSITIONS)).astype(np.float32)
    for head, session in zip(heads * 2, [first, *others] * 2, strict=True):  # twice: none disturbs another
        assert list(session.inputs) == ["features"]
        np.testing.assert_allclose(scores(session, features), expected(head, features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", list(ExecutionPrecision))
def test_a_graph_computes_what_it_does_when_compiled_as_it_is(tmp_path: Path, precision: ExecutionPrecision) -> None:
    path = write_head(tmp_path / "head.xml", numbers(0))
    if precision not in ("auto", "f32", *(kind for kind in ("bf16", "f16") if _runs_in(kind))):
        pytest.skip(f"this CPU does not execute in {precision}")
    runs_in = opened(path, precision=precision).precision
    plain = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": runs_in})
    features = np.random.default_rng(9).normal(size=(1, CHANNELS, POSITIONS)).astype(np.float32)
    tolerance = {"f32": 1e-6, "bf16": 2.0**-6, "f16": 2.0**-9}[runs_in]
    found, reference = scores(opened(path, precision=precision), features), plain(features)[0]
    np.testing.assert_allclose(found, reference, atol=tolerance * np.abs(reference).max())


def _runs_in(kind: str) -> bool:
    return {"bf16": "BF16", "f16": "FP16"}[kind] in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_matrices_in_int8_are_brought_as_they_are(tmp_path: Path, batch_size: int) -> None:
    paths, heads = [], [np.random.default_rng(seed).integers(-127, 128, (64, 32, 48), np.int8) for seed in range(2)]
    for index, head in enumerate(heads):
        features = op.parameter([-1, 64, 48], ov.Type.f32, "features")
        ends = [op.constant(np.float32(end)) for end in (-8, 127 / 16) * 2]
        whole = op.transpose(op.fake_quantize(features, *ends, 256), [1, 2, 0])
        matrices = op.multiply(op.convert(op.constant(head), ov.Type.f32), op.constant(np.float32(1 / 128)))
        model = ov.Model([op.transpose(op.matmul(matrices, whole, False, False), [2, 0, 1])], [features], "head")
        model.inputs[0].get_tensor().set_names({"features"})
        model.outputs[0].get_tensor().set_names({"scores"})
        paths.append(tmp_path / f"{index}.xml")
        ov.save_model(model, str(paths[-1]))
    first = opened(paths[0], batch_size=batch_size)
    second = opened(paths[1], batch_size=batch_size, like=first)
    assert first.shared is not None
    assert second.shared is first.shared
    values = np.random.default_rng(9).normal(size=(batch_size, 64, 48)).astype(np.float32)
    rounded = np.rint(values * 16).clip(-128, 127) / 16
    for head, session in zip(heads * 2, [first, second] * 2, strict=True):
        expected = np.einsum("prc,npc->npr", head / np.float32(128), rounded)
        np.testing.assert_allclose(scores(session, values), expected, rtol=1e-5, atol=1e-4)
    kernels = {
        node.get_rt_info()["layerType"].astype(str): node
        for node in first.shared.compiled.get_runtime_model().get_ops()
    }
    if "INT8" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert kernels["MatMul"].get_rt_info()["primitiveType"].astype(str).endswith("i8")


def test_a_head_that_differs_in_more_gets_a_graph_of_its_own(tmp_path: Path) -> None:
    first = opened(write_head(tmp_path / "first.xml", numbers(0)))
    table = TABLE + 1
    other = opened(write_head(tmp_path / "other.xml", numbers(1), table), like=first)
    batched = opened(tmp_path / "other.xml", like=other, batch_size=2)
    assert len({id(session.shared) for session in (first, other, batched)}) == 3
    features = np.random.default_rng(9).normal(size=(1, CHANNELS, POSITIONS)).astype(np.float32)
    np.testing.assert_allclose(scores(other, features), expected(numbers(1), features, table), rtol=1e-5, atol=1e-5)


def test_a_closed_session_is_no_model_for_others(tmp_path: Path) -> None:
    first = opened(write_head(tmp_path / "first.xml", numbers(0)))
    first.close()
    second = opened(write_head(tmp_path / "second.xml", numbers(1)), like=first)
    features = np.zeros((1, CHANNELS, POSITIONS), np.float32)
    np.testing.assert_allclose(scores(second, features), expected(numbers(1), features), rtol=1e-5, atol=1e-5)


def test_convolutions_are_compiled_as_they_are(tmp_path: Path) -> None:
    image = op.parameter([1, 3, 8, 8], ov.Type.f32, "image")
    kernel = op.constant(np.ones((4, 3, 3, 3), np.float32))
    biased = op.add(
        op.convolution(image, kernel, [1, 1], [1, 1], [1, 1], [1, 1]), op.constant(np.ones((1, 4, 1, 1), "f"))
    )
    model = ov.Model([biased], [image], "net")
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"map"})
    ov.save_model(model, str(tmp_path / "net.xml"))
    session = opened(tmp_path / "net.xml", aside=True)
    assert session.shared is None
    assert not session.aside


@pytest.mark.parametrize(
    "why", ["a body", "an int8 constant", "readers of another type", "an input of that name", "quotes"]
)
def test_graphs_in_which_a_difference_could_hide_are_compiled_as_they_are(tmp_path: Path, why: str) -> None:
    features = op.parameter([1, 5000], ov.Type.f32, "features")
    name, table = "features", np.ones(5000, np.float32)
    value = op.add(features, op.constant(table))
    if why == "a body":
        inputs = [op.parameter([1, 5000], ov.Type.f32) for _ in range(2)]
        bodies = [ov.Model([op.result(op.relu(each))], [each]) for each in inputs]
        branch = op.if_op(op.constant(np.array(True)))
        branch.set_then_body(bodies[0])
        branch.set_else_body(bodies[1])
        branch.set_input(value.output(0), *inputs)
        value = branch.set_output(bodies[0].results[0], bodies[1].results[0]).get_node()
    elif why == "an int8 constant":
        value = op.multiply(value, op.convert(op.constant(np.ones(5000, np.int8)), ov.Type.f32))
    elif why == "readers of another type":
        value = op.add(op.convert(value, ov.Type.i32), op.convert(op.constant(table), ov.Type.i32))
    elif why == "an input of that name":
        name = "constant_0"
    model = ov.Model([value], [features], "net")
    model.inputs[0].get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"scores"})
    ov.save_model(model, str(tmp_path / "net.xml"), compress_to_fp16=False)
    if why == "quotes":
        text = (tmp_path / "net.xml").read_text()
        (tmp_path / "net.xml").write_text(text.replace('name="net"', "name='net'"))
    assert opened(tmp_path / "net.xml").shared is None


def test_a_first_head_may_go_while_others_run(tmp_path: Path) -> None:
    first = opened(write_head(tmp_path / "first.xml", numbers(0)))
    second = opened(write_head(tmp_path / "second.xml", numbers(1)), like=first)
    assert second.shared is first.shared
    first.close()
    features = np.random.default_rng(9).normal(size=(1, CHANNELS, POSITIONS)).astype(np.float32)
    np.testing.assert_allclose(scores(second, features), expected(numbers(1), features), rtol=1e-5, atol=1e-5)


def test_numbers_kept_aside_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    paths = [write_head(tmp_path / f"{seed}.xml", numbers(seed)) for seed in range(2)]
    folder = tmp_path / "aside"
    folder.mkdir()
    first = opened(paths[0], aside=True, cache_dir=folder)
    second = opened(paths[1], aside=True, cache_dir=folder, like=first)
    assert first.aside
    assert second.aside
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".blob"]  # the engine's own
    features = np.random.default_rng(9).normal(size=(1, CHANNELS, POSITIONS)).astype(np.float32)
    for _ in range(2):  # from memory, then from the file
        for seed, session in enumerate((first, second)):
            np.testing.assert_allclose(
                scores(session, features), expected(numbers(seed), features), rtol=1e-5, atol=1e-5
            )


def test_no_room_to_keep_numbers_aside(tmp_path: Path) -> None:
    first = opened(path := write_head(tmp_path / "head.xml", numbers(0)))
    with pytest.raises(
        OutputWriteError, match=r"cannot put 0\.0 MB of a head aside in .*/nowhere: .*choose another cache_dir"
    ):
        first.shared.program.constants_of(
            GraphFiles.read(path, Format.OPENVINO), aside=True, folder=tmp_path / "nowhere"
        )


@given(arrays(np.float32, 7, elements=st.floats(width=32, allow_nan=False)))
def test_rounding_to_bfloat16_is_torchs(values: NDArray[np.float32]) -> None:
    for these in (values, values.clip(-65504, 65504).astype(np.float16)):
        reference = torch.from_numpy(these.astype(np.float32)).bfloat16().view(torch.uint16).numpy()
        np.testing.assert_array_equal(as_bfloat16(these), reference)


def test_ties_round_to_even_and_nan_stays() -> None:
    ties = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # halfway between two bfloat16
    np.testing.assert_array_equal(as_bfloat16(ties), [0x3F80, 0x3F82])
    nans = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    halves = np.array([0x7E00, 0x7FFF, 0xFFFF, 0x7C01], np.uint16).view(np.float16)
    assert {*as_bfloat16(nans), *as_bfloat16(halves)} == {0x7FC0}
