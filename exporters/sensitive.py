"""The convolutions that eight bits hurt, which stay in float in an int8 graph: stem, depthwise and copying ones.

The stem reads the image itself. Many of its filters are differences, whose weights sum to zero: rounded to eight bits
they do not quite, and the brightness of a frame leaks into features that say "edge". On low contrast, where a detector
looks for small differences, that is the largest part of what int8 loses.

A depthwise convolution has channels of very different ranges and one scale for all of them: small ones drown.

Both are cheap: their time is that of moving the tensors. On a CPU a ResNet18 takes 8 % longer for it, a
tf_efficientnet_lite0 2 %.

A convolution that only picks, orders and scales channels computes nothing that eight bits make faster; in a head, whose
values are in float, they would round what it copies. In an extractor it picks what is rounded already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from edge_ad.bundle.manifest import Format

if TYPE_CHECKING:
    import onnx
    import openvino as ov

IMAGE = "image"
Node = TypeVar("Node")


def sensitive_convolutions(model: ov.Model | onnx.ModelProto, graph_format: Format) -> list[str]:
    """Names of the convolutions that the input `IMAGE`, where there is one, meets first, and of the depthwise ones."""
    return sorted(_in_openvino(model) if graph_format is Format.OPENVINO else _in_onnx(model))


def copying_convolutions(model: ov.Model | onnx.ModelProto, graph_format: Format) -> list[str]:
    """Names of the 1x1 convolutions of which every output is at most one input channel, scaled."""
    weights = _weights_in_openvino(model) if graph_format is Format.OPENVINO else _weights_in_onnx(model)
    return sorted(name for name, values in weights if _copies(values))


def _copies(weights: NDArray[Any]) -> bool:
    outputs, inputs, *kernel = weights.shape
    return set(kernel) == {1} and bool(((weights.reshape(outputs, inputs) != 0).sum(1) <= 1).all())


def _weights_in_openvino(model: ov.Model) -> Iterator[tuple[str, NDArray[Any]]]:
    for node in model.get_ops():
        if node.get_type_name() == "Convolution":
            weights = node.input_value(1).get_node()
            if weights.get_type_name() == "Constant":
                yield str(node.get_friendly_name()), weights.data


def _weights_in_onnx(model: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and _groups(node) == 1 and node.input[1] in stored:
            yield str(node.name), numpy_helper.to_array(stored[node.input[1]])


def _in_openvino(model: ov.Model) -> set[str]:
    stem = _first(
        [port.get_node() for port in model.inputs if IMAGE in port.names],
        consumers=lambda node: (user.get_node() for port in node.outputs() for user in port.get_target_inputs()),
        is_convolution=lambda node: node.get_type_name() in ("Convolution", "GroupConvolution"),
        name=lambda node: str(node.get_friendly_name()),
    )
    # Weights of a group convolution: (groups, outputs per group, inputs per group, ...)
    grouped = [node for node in model.get_ops() if node.get_type_name() == "GroupConvolution"]
    return stem | {str(node.get_friendly_name()) for node in grouped if node.input(1).get_shape()[2] == 1}


def _in_onnx(model: onnx.ModelProto) -> set[str]:
    readers = defaultdict(list)
    for node in model.graph.node:
        for tensor in node.input:
            readers[tensor].append(node)
    stem = _first(
        readers[IMAGE],
        consumers=lambda node: (user for tensor in node.output for user in readers[tensor]),
        is_convolution=lambda node: node.op_type == "Conv",
        name=lambda node: str(node.name),
    )
    # Weights: (outputs, inputs per group, ...)
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return stem | {str(node.name) for node in convolutions if _groups(node) > 1 and shapes[node.input[1]][1] == 1}


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _first(
    starts: Iterable[Node],
    consumers: Callable[[Node], Iterable[Node]],
    is_convolution: Callable[[Node], bool],
    name: Callable[[Node], str],
) -> set[str]:
    """Names of the convolutions met first on every way down from ``starts``."""
    waiting, seen, found = list(starts), set[str](), set[str]()
    while waiting:
        node = waiting.pop()
        if name(node) in seen:
            continue
        seen.add(name(node))
        if is_convolution(node):
            found.add(name(node))
        else:
            waiting.extend(consumers(node))
    return found
