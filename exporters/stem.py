"""The stem of a network: the convolutions that read the image itself.

They stay in float in an int8 graph. Many of their filters are differences, whose weights sum to zero: rounded to eight
bits they do not quite, and the brightness of a frame leaks into features that say "edge". On low contrast, where a
detector looks for small differences, it is the largest part of what int8 loses, for a hundredth of the operations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from edge_ad.bundle.manifest import Format

if TYPE_CHECKING:
    import onnx
    import openvino as ov

IMAGE = "image"
Node = TypeVar("Node")


def stem_names(model: ov.Model | onnx.ModelProto, graph_format: Format) -> list[str]:
    """Names of the convolutions that the input `IMAGE` reaches without passing another; none where it is no input."""
    names = _openvino_stem(model) if graph_format is Format.OPENVINO else _onnx_stem(model)
    return sorted(names)


def _openvino_stem(model: ov.Model) -> set[str]:
    starts = [port.get_node() for port in model.inputs if IMAGE in port.names]
    stem = _first(
        starts,
        consumers=lambda node: (user.get_node() for port in node.outputs() for user in port.get_target_inputs()),
        is_convolution=lambda node: node.get_type_name() in ("Convolution", "GroupConvolution"),
        name=lambda node: str(node.get_friendly_name()),
    )
    return set(stem)


def _onnx_stem(model: onnx.ModelProto) -> set[str]:
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
    return set(stem)


def _first(
    starts: Iterable[Node],
    consumers: Callable[[Node], Iterable[Node]],
    is_convolution: Callable[[Node], bool],
    name: Callable[[Node], str],
) -> list[str]:
    """Names of the convolutions met first on every way down from ``starts``."""
    waiting, seen, found = list(starts), set[str](), []
    while waiting:
        node = waiting.pop()
        if name(node) in seen:
            continue
        seen.add(name(node))
        if is_convolution(node):
            found.append(name(node))
        else:
            waiting.extend(consumers(node))
    return found
