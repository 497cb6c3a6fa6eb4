"""Reduced Student: STFPM with a student of one residual block per stage, which learns the teacher's pooled features.

Source: Thomine et al., "MixedTeacher", arXiv 2306.09859, section 3; authors' code SimonThomine/MixedTeacher. Loss: per
layer the mean over positions of |t - s|^2 / 2, features of unit length, summed over layers (eq. 2 to 4). Map: these
distances upsampled, summed over layers (eq. 10), not smoothed. Score: its maximum, as in the authors' code, which finds
defects that are small. The paper's is the sum (eq. 12); over the tile's area it is ``-p mean_score=true``, for textures
whose defects fill much of a tile (`docs/results.md`). After a few dozen steps the maximum still belongs to what a
shallow student learns last, such as sharp edges, on normal tiles as on others.

Where the paper can be read in two ways:

- The layer before ResNet18's first block is its max-pool, at 1/4 of the tile's size, and not the activation at 1/2
  before it: it is what enters the block, and a quarter of the work. ``-p layers=act1,layer1,...`` is the other reading.
- Pooling halves the sides of the teacher's maps behind the first tap, not their channels: the authors' code.
- A block of the student is a residual block of stride 2, where the teacher has two: the authors' code. But its tap lies
  before the ReLU at its end, so that it can learn teachers whose features, like EfficientNet's, have both signs.
- Eq. 2 prints no square; the code squares, as STFPM does. Of the optimiser the paper gives the learning rate, which is
  STFPM's; momentum and weight decay are STFPM's too.

Symbols: N tiles, C channels, h, w tile size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import BackboneError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.image_scaling import ScaledImages
from edge_ad.methods.parts.imitation import SGD, feature_distance
from edge_ad.methods.parts.residual_block import initialise, strided_block
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.tiling import Size


class PooledTeacher(nn.Module):
    """A teacher whose maps behind the first are averaged over 2 x 2 positions.

    Args:
        network: the teacher.
        tile_size: (h, w) pixels.

    Attributes:
        channels, reductions: channels, and stride in pixels after pooling, of every map.
        sizes: (h', w') of every map.

    Raises:
        BackboneError: a stride does not divide the tile's size.
    """

    def __init__(self, network: Backbone, tile_size: Size) -> None:
        super().__init__()
        first, *deeper = network.features
        self.network = network
        self.channels = [spec.channels for spec in network.features]
        self.reductions = [first.reduction, *(2 * spec.reduction for spec in deeper)]
        if any(size % self.reductions[-1] for size in tile_size):
            raise BackboneError(
                f"tile size {tile_size[0]}x{tile_size[1]} is no multiple of {self.reductions[-1]}, to which the layer "
                f"{network.features[-1].layer} of {network.name} is pooled; choose such a tile size or other layers"
            )
        self.sizes = [(tile_size[0] // stride, tile_size[1] // stride) for stride in self.reductions]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h', w') float32 of ``image`` uint8 (N, h, w, 3) RGB."""
        first, *deeper = self.network(image)
        return [first, *(F.avg_pool2d(value, 2) for value in deeper)]


def halvings(factor: int) -> tuple[list[nn.Module], int]:
    """Max-pools to lower a resolution by ``factor``, and the stride that is left to a convolution: 1 or 2."""
    pools: list[nn.Module] = []
    while factor > 2:
        pools.append(nn.MaxPool2d(3, stride=2, padding=1))
        factor //= 2
    return pools, factor


class ReducedResNet(ScaledImages):
    """ResNet's stem, then one residual block per tap.

    Args:
        channels, reductions: of the maps it makes, see `PooledTeacher`.
        mean, std: normalisation of images in [0, 1] per channel (1, 3, 1, 1).
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], mean: Tensor, std: Tensor) -> None:
        super().__init__(mean, std)
        pools, stride = halvings(reductions[0])
        stem = nn.Conv2d(3, channels[0], 7, stride, padding=3, bias=False)
        blocks: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(channels[0]), *pools)]
        for i in range(1, len(channels)):
            pools, stride = halvings(reductions[i] // reductions[i - 1])
            blocks.append(
                nn.Sequential(nn.ReLU(), *pools, strided_block(channels[i - 1], channels[i], stride, rectified=False))
            )
        self.blocks = nn.ModuleList(blocks)
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h', w') of ``image`` uint8 (N, h, w, 3)."""
        x = self.scaled(image)
        return [x := block(x) for block in self.blocks]


class ReducedStudentHead(nn.Module):
    """The student and its distance to the teacher."""

    def __init__(self, teacher: PooledTeacher, tile_size: Size, *, mean_score: bool) -> None:
        super().__init__()
        self.mean_score = mean_score
        network = teacher.network
        self.student = ReducedResNet(teacher.channels, teacher.reductions, network.mean, network.std)
        self.total = TotalDistance(teacher.sizes, tile_size)

    def distances(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """`half_distances` of the student of ``image`` uint8 (N, h, w, 3) to the teacher's ``features``."""
        return half_distances(features, self.student(image))

    def forward(self, image: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        anomaly_map = self.total(self.distances(image, features))
        return anomaly_map, tile_score(anomaly_map, mean=self.mean_score)


class TotalDistance(nn.Module):
    """Distances of several layers, each upsampled to the tile, summed (eq. 9 and 10)."""

    def __init__(self, sizes: Sequence[Size], tile_size: Size) -> None:
        super().__init__()
        self.to_tile = nn.ModuleList(UpsampleSmooth(size, tile_size, sigma_px=0) for size in sizes)

    def forward(self, distances: Sequence[Tensor]) -> Tensor:
        """(N, 1, h, w) of (N, 1, h', w') per layer."""
        layers = [resize(d) for resize, d in zip(self.to_tile, distances, strict=True)]
        return torch.cat(layers, dim=1).sum(1, keepdim=True)


def half_distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """|t - s|^2 / 2 (N, 1, h', w') per layer, in [0, 2], of features (N, C, h', w') brought to unit length (eq. 2)."""
    return [0.5 * feature_distance(t, s) for t, s in zip(teacher, student, strict=True)]


def tile_score(anomaly_map: Tensor, *, mean: bool) -> Tensor:
    """Maximum or mean (N,) of maps (N, 1, h, w)."""
    return anomaly_map.mean((1, 2, 3)) if mean else anomaly_map.amax((1, 2, 3))


class ReducedStudent(GradientModel):
    """The Reduced Student of any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: of the teacher, see `Backbone`. Where no layers are named: what enters the first
            block, and the layers of stride 4, 8 and 16.
        mean_score: score a tile by the mean of its map, else by its maximum.
        training: see `GradientModel`.
    """

    name: ClassVar[str] = "reduced_student"
    minimum_tiles: ClassVar[int] = 2
    head_takes_image: ClassVar[bool] = True
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(SGD, learning_rate=3.2, batch_size=32, steps=200, keep_best=True, decay_at=0.75),  # see stfpm
        "original": Schedule(SGD, learning_rate=0.4, batch_size=16, epochs=100, keep_best=True),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        mean_score: bool = False,
        **training: Any,
    ) -> None:
        network = Backbone(backbone, layers, weights, before_blocks=True)
        self.teacher = PooledTeacher(network, tile_size)
        super().__init__(tile_size, network.config | {"mean_score": mean_score}, **training)
        self.mean_score = mean_score
        self.extractor = self.teacher
        self.weights_source = network.source
        self.feature_names = network.feature_names

    def new_head(self) -> ReducedStudentHead:
        """See `GradientModel.new_head`."""
        return ReducedStudentHead(self.teacher, self.tile_size, mean_score=self.mean_score)

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Mean distance per layer, summed over layers (eq. 3 and 4)."""
        assert isinstance(head, ReducedStudentHead)
        image, *features = inputs
        return torch.stack([d.mean() for d in head.distances(image, features)]).sum()
