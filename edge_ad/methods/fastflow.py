"""FastFlow: normalising flows turn the features of normal tiles into independent standard normal numbers.

Source: Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows", arXiv
2111.07677. There is no official code; hyper-parameters and normalisation are those of gathierry/FastFlow, whose steps
are FrEIA's AllInOneBlock. Loss: negative log-likelihood, summed over a layer's values and over layers. Map: p, which is
exp(-0.5 mean_c z^2) per layer, upsampled and averaged over layers, not smoothed. Score: the map's maximum.

The map is -log p where theirs is -p: the same order at every position, but 1 - p is 1 for whatever is far from normal,
which ties there in float32 and is decided by rounding in half precision. Merged by their mean, tiles average the
logarithm.

Symbols: N batch, C channels, h' x w' positions of a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.couplings import Flow, FlowGraph
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.tiling import Size

SMALLEST_VARIANCE = 1e-5
SMALLEST_LIKELIHOOD = 1e-30  # the logarithm of zero is no number
_ADAM = functools.partial(torch.optim.Adam, weight_decay=1e-5)


class LayerNorm(nn.Module):
    """Values of one tile at mean 0 and variance 1 over (C, h', w'), then a scale and a shift of every value.

    torch's own becomes one operation that int8 would round (see `edge_ad.methods.parts.couplings`); it adds the
    smallest variance, where here variances below are raised to it.
    """

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, *size))
        self.shift = nn.Parameter(torch.zeros(channels, *size))

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, h', w') to the same."""
        centred = values - values.mean((1, 2, 3), keepdim=True)
        variance = (centred * centred).mean((1, 2, 3), keepdim=True)
        return centred / variance.clamp(min=SMALLEST_VARIANCE).sqrt() * self.scale - self.shift


class FastflowHead(nn.Module):
    """A normalisation and a flow per layer, and the map of how unlikely their outcome is."""

    def __init__(self, backbone: Backbone, tile_size: Size, conv3x3_only: bool) -> None:
        super().__init__()
        channels = [spec.channels for spec in backbone.features]
        sizes = backbone.map_sizes(tile_size)
        self.norms = nn.ModuleList(LayerNorm(*shape) for shape in zip(channels, sizes, strict=True))
        self.flows = nn.ModuleList(Flow(count, conv3x3_only) for count in channels)
        self.upsample = nn.ModuleList(UpsampleSmooth(size, tile_size, sigma_px=0) for size in sizes)

    def latents(self, features: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """z (N, C, h', w') and log-determinant (N,) per layer."""
        return [flow(norm(part)) for flow, norm, part in zip(self.flows, self.norms, features, strict=True)]

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w) not below 0, pred_score (N,)) float32."""
        return map_and_score(((z * z).mean(1, keepdim=True) for z, _ in self.latents(features)), self.upsample)


class FastflowGraph(nn.Module):
    """A trained `FastflowHead` in the form engines run best."""

    def __init__(self, head: FastflowHead) -> None:
        super().__init__()
        self.norms, self.upsample = head.norms, head.upsample
        self.flows = nn.ModuleList(FlowGraph(flow) for flow in head.flows if isinstance(flow, Flow))

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """See `FastflowHead.forward`."""
        layers = zip(self.flows, self.norms, features, strict=True)
        return map_and_score((flow(norm(part)) for flow, norm, part in layers), self.upsample)


def map_and_score(squares: Iterable[Tensor], upsample: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Anomaly map (N, 1, h, w) and pred_score (N,) of the mean squares (N, 1, h', w') of every layer's z."""
    likelihoods = [resize((-0.5 * square).exp()) for resize, square in zip(upsample, squares, strict=True)]
    likelihood = torch.cat(likelihoods, dim=1).mean(1, keepdim=True)
    anomaly_map = -likelihood.clamp(min=SMALLEST_LIKELIHOOD).log()
    return anomaly_map, anomaly_map.amax((1, 2, 3))


class Fastflow(GradientModel):
    """FastFlow on any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`.
        conv3x3_only: as in the tiled paper, told by its parameter counts; else kernels of 3 and 1 alternate, 0.63 of
            the parameters.
        training: see `GradientModel`.
    """

    name: ClassVar[str] = "fastflow"
    minimum_tiles: ClassVar[int] = 2
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(_ADAM, learning_rate=1e-3, batch_size=32, steps=200),
        "original": Schedule(_ADAM, learning_rate=1e-3, batch_size=32, epochs=500),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        conv3x3_only: bool = True,
        **training: Any,
    ) -> None:
        network = Backbone(backbone, layers, weights)
        network.map_sizes(tile_size)
        super().__init__(tile_size, network.config | {"conv3x3_only": conv3x3_only}, **training)
        self.conv3x3_only = conv3x3_only
        self.extractor: Backbone = network
        self.weights_source = network.source
        self.feature_names = network.feature_names

    def new_head(self) -> FastflowHead:
        """See `GradientModel.new_head`. The permutations are random too, and part of the head's state."""
        return FastflowHead(self.extractor, self.tile_size, self.conv3x3_only)

    def for_engines(self, head: nn.Module) -> FastflowGraph:
        """See `TileModel.for_engines`."""
        assert isinstance(head, FastflowHead)
        return FastflowGraph(head)

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Negative log-likelihood of a tile's features, less a constant; summed over layers."""
        assert isinstance(head, FastflowHead)
        return torch.stack([0.5 * (z * z).sum((1, 2, 3)) - gain for z, gain in head.latents(inputs)]).sum(0).mean()
