"""Torch modules to ONNX."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from edge_ad.exporters.quiet import quiet
from edge_ad.runtime.onnxruntime_session import ARITHMETIC, BATCH_AXIS
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.telemetry import no_telemetry
from edge_ad.training.torch_graph import TorchGraph

with no_telemetry():
    from onnxruntime.transformers.float16 import convert_float_to_float16

OPSET = 18
_HALVED_FROM = 1024  # elements; below, an initializer is a scalar or a shape rather than a weight


def convert(graph: TorchGraph) -> onnx.ModelProto:
    """A checked onnx.ModelProto with the graph's tensor names, static sizes and a dynamic batch."""
    batch = torch.export.Dim(BATCH_AXIS, min=1, max=1024)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            graph.module,
            graph.example(batch_size=2),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            dynamic_shapes=_dynamic_batch(graph, batch),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # typed Optional for the exporter's other modes
    model = program.model_proto
    onnx.checker.check_model(model)
    return model


def _dynamic_batch(graph: TorchGraph, batch: Any) -> tuple[Any, ...]:
    """What is dynamic per argument of the module; torch wants those that ``*features`` takes as one tuple."""
    shapes = tuple({0: batch} for _ in graph.inputs)
    arguments = inspect.signature(graph.module.forward).parameters.values()
    named = sum(argument.kind is not argument.VAR_POSITIONAL for argument in arguments)
    return shapes if named == len(arguments) else (*shapes[:named], shapes[named:])


def write(model: onnx.ModelProto, stem: Path, *, half: bool) -> tuple[Path, ...]:
    """Write one self-contained ``stem``.onnx (protobuf bounds it to 2 GB) and return it.

    Args:
        model: the graph; changed where ``half``.
        stem: path without suffix.
        half: store float32 weights in half precision, see `halve_storage`.
    """
    if half:
        halve_storage(model)
    path = stem.with_suffix(".onnx")
    onnx.save_model(model, path, save_as_external_data=False)
    return (path,)


def halve_storage(model: onnx.ModelProto) -> None:
    """Store float32 weights as float16 and cast them back where they are read: half the file, float32 arithmetic.

    ONNX Runtime folds the casts when it loads. A tensor with a value that would become infinite stays as it is.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALVED_FROM:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def halve_arithmetic(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph computing in half precision, its inputs and outputs as they were; it says so in its metadata.

    Sessions on a GPU run it so. On the CPU the engine casts what goes into each operation and what comes out.
    """
    halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    halved.metadata_props.add(key=ARITHMETIC, value=ExecutionPrecision.F16)
    return halved
