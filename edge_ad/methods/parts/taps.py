"""Any module of a network as a tap: the network's own forward, traced and ended behind the deepest one.

timm cuts networks at the layers it lists, the last one of every stride: of EfficientNet-B0 neither ``blocks.5`` nor
anything before ``blocks.0``, of ResNet18 not ``maxpool``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from edge_ad.errors import BackboneError

_PROBE_PX = 64


class _Tracer(fx.Tracer):
    """Looks into modules that hold a tap; all others are opaque, so whatever they do need not be traceable."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(layer.startswith(f"{module_qualified_name}.") for layer in self.layers)


def tap(net: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
    """``net`` from its input to the list of the outputs of ``layers``, shallow to deep.

    The modules are those of ``net`` under their names there; what lies behind the deepest tap is left out.

    Raises:
        BackboneError: the forward of ``net`` cannot be traced, or does not call every one of ``layers`` once.
    """
    activations: Any = [module for module in net.modules() if getattr(module, "inplace", False)]
    for activation in activations:
        activation.inplace = False  # behind a tap it would overwrite what is returned
    try:
        graph = _Tracer(layers).trace(net)
    except Exception as error:  # whatever a forward does with what is no tensor
        raise BackboneError(f"layers {', '.join(layers)} cannot be tapped: {error}".splitlines()[0]) from error
    taps = [node for node in graph.nodes if node.op == "call_module" and node.target in layers]
    if sorted(str(node.target) for node in taps) != sorted(layers):
        raise BackboneError(f"layers {', '.join(layers)} cannot be tapped: not each is called once; name others")
    (output,) = graph.find_nodes(op="output")
    output.args = (taps,)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return fx.GraphModule(net, graph)


@torch.no_grad()
def tapped(net: nn.Module) -> list[tuple[str, int, int]]:
    """(layer, channels, stride in pixels) of every map (N, C, h, w) that ``net``, a network from `tap`, returns.

    Raises:
        BackboneError: one of the layers makes no such map.
    """
    (output,) = cast("fx.GraphModule", net).graph.find_nodes(op="output")
    layers = [str(node.target) for node in output.all_input_nodes]
    maps = net.eval()(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX))
    if none := [layer for layer, value in zip(layers, maps, strict=True) if value.ndim != 4]:
        raise BackboneError(f"layers {', '.join(none)} make no maps (N, C, h, w); name others")
    return [(layer, value.shape[1], _PROBE_PX // value.shape[2]) for layer, value in zip(layers, maps, strict=True)]
