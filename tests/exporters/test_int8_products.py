"""Products in eight bits: stored in a byte per number, run in int8, and equal to torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor, nn

from edge_ad.exporters import openvino_ir
from edge_ad.methods.parts.eight_bits import STEP, rounded, whole_rows
from edge_ad.methods.patchcore import PatchcoreHead, PatchcoreInt8Head, bank_state
from edge_ad.runtime.session import TensorSpec
from edge_ad.training.torch_graph import TorchGraph

POSITIONS, ROWS, CHANNELS = 64, 32, 48


class Product(nn.Module):
    """A matrix per position times what comes in."""

    def __init__(self, matrices: Tensor, *, rounds: bool) -> None:
        super().__init__()
        self.register_buffer("matrices", matrices)
        self.rounds = rounds

    def forward(self, features: Tensor) -> Tensor:
        values = rounded(features / 16) if self.rounds else features
        return (self.matrices @ values.permute(1, 2, 0)).permute(2, 0, 1)


def matrices() -> Tensor:
    return torch.randn(POSITIONS, ROWS, CHANNELS, generator=torch.Generator().manual_seed(0))


def features(batch: int) -> Tensor:
    return 3 * torch.randn(batch, POSITIONS, CHANNELS, generator=torch.Generator().manual_seed(1))


def written(module: Product, folder: Path) -> Path:
    graph = TorchGraph(
        module,
        (TensorSpec("features", (1, POSITIONS, CHANNELS), "float32"),),
        (TensorSpec("projected", (1, POSITIONS, ROWS), "float32"),),
    )
    path, _ = openvino_ir.write(openvino_ir.convert(graph), folder / "product", half=False)
    return path


def stored(path: Path) -> str:
    """The type of the matrices in the file."""
    model = ov.Core().read_model(path)
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    (found,) = [node for node in constants if list(node.output(0).shape) == [POSITIONS, ROWS, CHANNELS]]
    return str(found.get_element_type().get_type_name())


@pytest.mark.parametrize("batch", [1, 3])
def test_whole_numbers_are_stored_in_eight_bits_and_compute_the_same(tmp_path: Path, batch: int) -> None:
    module = Product(whole_rows(matrices())[0], rounds=True)
    path = written(module, tmp_path)
    assert stored(path) == "i8"
    assert path.with_suffix(".bin").stat().st_size < 1.1 * POSITIONS * ROWS * CHANNELS
    model = ov.Core().read_model(path)
    model.reshape([batch, POSITIONS, CHANNELS])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = module(features(batch)).numpy()
    # Sums of products of integers: exact, but for the scales in float32
    np.testing.assert_allclose(compiled(features(batch).numpy())[0], expected, rtol=1e-5, atol=1e-5)


def test_the_engine_multiplies_them_in_int8(tmp_path: Path) -> None:
    model = ov.Core().read_model(written(Product(whole_rows(matrices())[0], rounds=True), tmp_path))
    model.reshape([1, POSITIONS, CHANNELS])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if "INT8" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not multiply in int8")
    kernels = [
        node.get_rt_info()["primitiveType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "MatMul"
    ]
    assert len(kernels) == 1
    assert kernels[0].endswith("i8")


@pytest.mark.parametrize("batch", [1, 3])
def test_the_distances_to_a_bank_are_multiplied_in_int8(tmp_path: Path, batch: int) -> None:
    """One matrix for all positions, which an engine calls a fully connected layer, with its scales and squares."""
    state = bank_state(torch.randn(256, CHANNELS, generator=torch.Generator().manual_seed(0)).exp())
    head = PatchcoreHead((8, 8), CHANNELS, *state["neighbours"].shape, (64, 64))
    head.load_state_dict(state)
    module = PatchcoreInt8Head(head).eval()
    graph = TorchGraph(
        module,
        (TensorSpec("embedding", (1, 8, 8, CHANNELS), "float32"),),
        (TensorSpec("anomaly_map", (1, 1, 64, 64), "float32"), TensorSpec("pred_score", (1,), "float32")),
    )
    path, weights = openvino_ir.write(openvino_ir.convert(graph), tmp_path / "head", half=True)
    model = ov.Core().read_model(path)
    assert weights.stat().st_size < 256 * (CHANNELS + 9 * 8) + 6000  # the bank in bytes, its neighbours in int64
    model.reshape([batch, 8, 8, CHANNELS])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    embedding = features(batch).reshape(batch, 8, 8, CHANNELS)
    with torch.no_grad():
        expected = [output.numpy() for output in module(embedding)]
    found = compiled(embedding.numpy())
    # The squares of the bank are stored in half precision
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3)
    if "INT8" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not multiply in int8")
    kernels = [
        node.get_rt_info()["primitiveType"].astype(str).lower()
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str).startswith("FullyConnected")
    ]
    assert [kernel for kernel in kernels if kernel.endswith("i8")], kernels


@pytest.mark.parametrize("why", ["not whole", "too large", "the features are not rounded"])
def test_other_products_stay_in_float(tmp_path: Path, why: str) -> None:
    whole = whole_rows(matrices())[0]
    if why == "not whole":
        whole[0, 0, 0] += STEP / 2
    elif why == "too large":
        whole[0, 0, 0] = 1.0
    assert stored(written(Product(whole, rounds=why != "the features are not rounded"), tmp_path)) == "f32"


def test_rows_are_whole_and_close() -> None:
    values, scale = whole_rows(matrices())
    whole = values / STEP
    assert torch.equal(whole, whole.round())
    assert whole.abs().amax(-1).eq(127).all()
    assert ((values * scale - matrices()).abs() <= scale * STEP / 2 * 1.0001).all()
