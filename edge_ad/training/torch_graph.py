"""A torch module as a graph: its inputs and outputs by name, example tensors, cost, and the session that runs it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edge_ad.methods.tile_model import TileModel
from edge_ad.runtime.session import TensorSpec
from edge_ad.training.torch_session import TorchSession


@dataclass(frozen=True)
class TorchGraph:
    """``module(*inputs) -> outputs``, every tensor batch first.

    Args:
        module: fitted, in evaluation mode.
        inputs, outputs: specs at batch 1; the batch axis is dynamic in the exported graph.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def device(self) -> torch.device:
        """Where the module lies, all of it; the CPU where it stores nothing."""
        stored = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((value.device for value in stored), torch.device("cpu"))

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and dtypes, zeros, on the module's device."""
        return tuple(
            torch.zeros((batch_size, *spec.shape[1:]), dtype=getattr(torch, spec.dtype), device=self.device)
            for spec in self.inputs
        )

    def session(self) -> TorchSession:
        """The module behind the runtime's `Session`, on its device."""
        return TorchSession(self.module, self.inputs, self.outputs, self.device)

    @property
    def parameters(self) -> int:
        """Numbers stored, learnt or computed: parameters and persistent buffers."""
        return sum(value.numel() for value in self.module.state_dict().values())

    @torch.no_grad()
    def flops(self) -> int:
        """Floating-point operations of convolutions and matrix products at batch 1, multiply and add counted apart."""
        counter = FlopCounterMode(display=False)
        with counter:
            self.module(*self.example())
        return int(counter.get_total_flops())


def shared_graph(model: TileModel) -> TorchGraph:
    """``image -> features...`` of a method's extractor."""
    height, width = model.tile_size
    image = TensorSpec("image", (1, height, width, 3), "uint8")
    features = model.extract(torch.zeros(image.shape, dtype=torch.uint8))
    outputs = tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(model.feature_names, features, strict=True)
    )
    return TorchGraph(model.extractor, (image,), outputs)


def head_graph(model: TileModel, head: nn.Module, shared: TorchGraph) -> TorchGraph:
    """``features... -> anomaly_map, pred_score`` of one fitted head; ``image`` comes first where it takes it.

    Args:
        shared: the extractor over a tile, whose features the head is fed.
    """
    inputs = (*(shared.inputs if model.head_takes_image else ()), *shared.outputs)
    outputs = (
        TensorSpec("anomaly_map", (1, 1, *model.tile_size), "float32"),
        TensorSpec("pred_score", (1,), "float32"),
    )
    return TorchGraph(head, inputs, outputs)
