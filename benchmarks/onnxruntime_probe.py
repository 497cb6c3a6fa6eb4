"""How fast ONNX Runtime multiplies matrices on a GPU. The only module of this room that imports onnx."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_ad.benchmarks.timing import time_interleaved
from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Format
from edge_ad.runtime.onnxruntime_session import ARITHMETIC, ENGINE
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.sessions import open_session

_SIDE = 4096  # of products that fill a large GPU for a millisecond; the call around them takes a few dozen microseconds
_CHAIN = 4
_RUNS = 8
_OPSET = 18
_FLOATS = {"f32": TensorProto.FLOAT, "tf32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}

__all__ = ["ENGINE", "knows", "matmul_flops_per_s"]


def knows(precision: str) -> bool:
    """Whether a chain of products can be run in ``precision``."""
    return precision in _FLOATS


def matmul_flops_per_s(device: str, precision: str, side: int = _SIDE) -> float:
    """Multiplications and additions per second, counted apart, in products of square matrices; the best of a few runs.

    Args:
        device: as the session reports it.
        precision: ``f32``, ``tf32`` or ``f16``.
        side: of the matrices.
    """
    graph = GraphFiles("matmul", _chain(_FLOATS[precision], side).SerializeToString())
    session = open_session(graph, Format.ONNX, device, precision=ExecutionPrecision(precision))
    feeds = {"scale": np.ones((1, 1), np.float32)}
    best_ms = time_interleaved({"infer": lambda: session.run(feeds)}, 1, _RUNS)["infer"].min_ms
    session.close()
    return _CHAIN * 2 * side**3 / (best_ms / 1000)


def _chain(kind: int, side: int) -> onnx.ModelProto:
    """scale -> (scale W) W W ... summed up: the scale keeps products from being folded into a constant."""
    # Rows of unit length on average: products neither vanish nor overflow
    matrix = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32) / np.sqrt(side)
    weights = matrix.astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("Cast", ["scale"], ["cast"], to=kind),
        helper.make_node("Mul", ["cast", "w"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{step}", "w"], [f"x{step + 1}"]) for step in range(_CHAIN)),
        helper.make_node("ReduceMax", [f"x{_CHAIN}"], ["most"], keepdims=1),
        helper.make_node("Cast", ["most"], ["out"], to=TensorProto.FLOAT),
    ]
    (given, taken) = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("scale", "out"))
    graph = helper.make_graph(nodes, "matmul", [given], [taken], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    if kind == TensorProto.FLOAT16:
        model.metadata_props.add(key=ARITHMETIC, value=ExecutionPrecision.F16)
    return model
