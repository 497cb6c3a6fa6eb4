"""Torch modules to OpenVINO IR."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edge_ad.exporters import ir_file
from edge_ad.exporters.int8_products import store_int8
from edge_ad.runtime.telemetry import no_telemetry
from edge_ad.training.torch_graph import TorchGraph

with no_telemetry():
    import openvino as ov
    from openvino.preprocess import PrePostProcessor


def convert(graph: TorchGraph) -> ov.Model:
    """An openvino.Model with the graph's tensor names, static sizes and a dynamic batch."""
    model = ov.convert_model(graph.module, example_input=graph.example(batch_size=2))
    for port, spec in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({spec.name})
    for port, spec in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({spec.name})
    store_int8(model)
    model.reshape({spec.name: ov.PartialShape([-1, *spec.shape[1:]]) for spec in graph.inputs})
    return model


def channels_last(model: ov.Model, names: Collection[str]) -> ov.Model:
    """``model`` with the inputs and outputs of these ``names`` in the order NHWC where they were NCHW; changed itself.

    The engine convolves channels last: in the other order it turns every map when one graph gives it, and when the next
    takes it.
    """
    steps = PrePostProcessor(model)
    for ports, step_of in ((model.inputs, steps.input), (model.outputs, steps.output)):
        for name in (name for port in ports for name in port.names if name in names):
            step_of(name).model().set_layout(ov.Layout("NCHW"))
            step_of(name).tensor().set_layout(ov.Layout("NHWC"))
    return steps.build()


def write(model: ov.Model, stem: Path, *, half: bool) -> tuple[Path, ...]:
    """Write ``stem``.xml and .bin and return both.

    Args:
        model: the graph.
        stem: path without suffix.
        half: store float constants in half precision.
    """
    path = stem.with_suffix(".xml")
    ir_file.save(model, path, half=half)
    return path, path.with_suffix(".bin")
