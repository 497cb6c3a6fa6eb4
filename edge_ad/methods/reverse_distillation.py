"""Reverse Distillation: a decoder rebuilds a frozen teacher's features from a bottleneck that only knows normal ones.

Source: Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", arXiv 2201.10703; official
code hq-deng/RD4AD. Loss: 1 - cosine of teacher's and student's features, averaged, summed over layers. Map: 1 - cosine
at every position, upsampled with corners on corners and smoothed, summed over layers. Score: its maximum.

Four things differ from the official code. The teacher ends at the deepest layer used, and the bottleneck lacks a
convolution that is never called. Where a teacher's features are signed, as those of inverted residual blocks are, its
student's are too. All blocks are ResNet's basic ones, whatever the teacher; the official wide ResNets have bottleneck
blocks. And where a map's sides are odd, the decoder's, which doubles, is cut to them.

Symbols: N batch, L layers, C_i channels, h' x w' positions of a layer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.errors import BackboneError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.imitation import feature_distance
from edge_ad.methods.parts.residual_block import ResidualBlock, conv3x3, initialise, strided_block
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.tiling import Size

SMOOTHING_SIGMA_PX = 4.0
_ADAM = functools.partial(torch.optim.Adam, betas=(0.5, 0.999))


def deconv2x2(inputs: int, outputs: int) -> nn.Module:
    """Doubles the size."""
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)


def doubling_block(inputs: int, outputs: int) -> ResidualBlock:
    """Doubles the size."""
    shortcut = nn.Sequential(deconv2x2(inputs, outputs), nn.BatchNorm2d(outputs))
    return ResidualBlock(deconv2x2(inputs, outputs), shortcut, outputs)


def plain_block(channels: int, *, rectified: bool = True) -> ResidualBlock:
    """Keeps the size."""
    return ResidualBlock(conv3x3(channels, channels), nn.Identity(), channels, rectified=rectified)


class Bottleneck(nn.Module):
    """One-class bottleneck embedding: all layers brought to the size of the deepest, concatenated and halved again.

    Args:
        channels: C_i of the layers, shallow to deep; each is half the size of the one before.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        deepest = channels[-1]
        self.paths = nn.ModuleList()
        for start in range(len(channels)):
            path = nn.Sequential()
            for before, after in itertools.pairwise(channels[start:]):
                path.extend((conv3x3(before, after, stride=2), nn.BatchNorm2d(after), nn.ReLU()))
            self.paths.append(path)
        self.embed = nn.Sequential(strided_block(len(channels) * deepest, 2 * deepest, 2), plain_block(2 * deepest))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, 2 C_L, h', w') at half the size of the deepest layer, rounded up."""
        same_size = [path(part) for path, part in zip(self.paths, features, strict=True)]
        embedding: Tensor = self.embed(torch.cat(same_size, dim=1))
        return embedding


class Decoder(nn.Module):
    """From the embedding back to the layers, deepest first.

    Args:
        channels, sizes, rectified: C_i, (h', w') and whether values are never negative, of the layers, shallow to deep.
    """

    def __init__(self, channels: Sequence[int], sizes: Sequence[Size], rectified: Sequence[bool]) -> None:
        super().__init__()
        outputs = channels[::-1]
        inputs = (2 * outputs[0], *outputs[:-1])
        self.sizes = sizes[::-1]
        self.stages = nn.ModuleList(
            nn.Sequential(doubling_block(before, after), plain_block(after, rectified=positive))
            for before, after, positive in zip(inputs, outputs, rectified[::-1], strict=True)
        )

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """(N, C_i, h', w') per layer, shallow to deep."""
        maps, found = embedding, []
        for stage, (height, width) in zip(self.stages, self.sizes, strict=True):
            maps = stage(maps)[:, :, :height, :width]
            found.append(maps)
        return found[::-1]


class ReverseDistillationHead(nn.Module):
    """The student, bottleneck and decoder, and its distance to the teacher."""

    def __init__(self, teacher: Backbone, tile_size: Size, rectified: Sequence[bool]) -> None:
        super().__init__()
        channels, sizes = [spec.channels for spec in teacher.features], teacher.map_sizes(tile_size)
        self.bottleneck = Bottleneck(channels)
        self.decoder = Decoder(channels, sizes, rectified)
        self.upsample = nn.ModuleList(
            UpsampleSmooth(size, tile_size, SMOOTHING_SIGMA_PX, align_corners=True) for size in sizes
        )
        initialise(self)

    def student(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What the decoder makes of the teacher's ``features``: the same shapes."""
        maps: list[Tensor] = self.decoder(self.bottleneck(features))
        return maps

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        pairs = zip(features, self.student(features), strict=True)
        layers = [resize(0.5 * feature_distance(*pair)) for resize, pair in zip(self.upsample, pairs, strict=True)]
        anomaly_map = torch.cat(layers, dim=1).sum(1, keepdim=True)
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class ReverseDistillation(GradientModel):
    """Reverse Distillation on any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: of the teacher, see `Backbone`; strides must double from layer to layer.
        loss_per_position: one cosine per position of a layer, as the article writes and the tiled paper trained; else
            one per tile, of the layer's values as a single vector, where strong features weigh more. The official code
            and its published results have the latter, and those who tried the former reported less (its issue 22).
        training: see `GradientModel`.

    Raises:
        BackboneError: strides of the layers do not double; see also `Backbone`.
    """

    name: ClassVar[str] = "reverse_distillation"
    minimum_tiles: ClassVar[int] = 2
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(_ADAM, learning_rate=5e-3, batch_size=32, steps=200),
        "original": Schedule(_ADAM, learning_rate=5e-3, batch_size=16, epochs=200),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        loss_per_position: bool = False,
        **training: Any,
    ) -> None:
        self.teacher = Backbone(backbone, layers, weights)
        self.teacher.map_sizes(tile_size)
        strides = [spec.reduction for spec in self.teacher.features]
        if any(after != 2 * before for before, after in itertools.pairwise(strides)):
            there = ", ".join(f"{spec.layer} ({spec.reduction})" for spec in self.teacher.features)
            raise BackboneError(
                f"{self.name} needs layers whose strides double, but got {there}; choose others by -p layers=..."
            )
        super().__init__(tile_size, self.teacher.config | {"loss_per_position": loss_per_position}, **training)
        self.loss_per_position = loss_per_position
        self.rectified = never_negative(self.teacher)
        self.extractor = self.teacher
        self.weights_source = self.teacher.source
        self.feature_names = self.teacher.feature_names

    def new_head(self) -> ReverseDistillationHead:
        """See `GradientModel.new_head`."""
        return ReverseDistillationHead(self.teacher, self.tile_size, self.rectified)

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Mean of 1 - cosine per layer, summed over layers."""
        assert isinstance(head, ReverseDistillationHead)
        pairs = list(zip(inputs, head.student(inputs), strict=True))
        if not self.loss_per_position:
            pairs = [(t.flatten(1), s.flatten(1)) for t, s in pairs]
        return torch.stack([0.5 * feature_distance(t, s).mean() for t, s in pairs]).sum()


@torch.no_grad()
def never_negative(network: Backbone) -> list[bool]:
    """Per layer, whether it ends in a ReLU or its like, told by a tile of noise: it follows from the architecture."""
    side = 2 * network.features[-1].reduction
    noise = torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(0))
    return [bool((part >= 0).all()) for part in network(noise.to(torch.uint8))]
