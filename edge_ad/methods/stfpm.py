"""STFPM: a student network learns a frozen teacher's features on normal tiles, and fails where it never looked.

Source: Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", arXiv 2103.04257; official code
gdwang08/STFPM. Loss: per layer the mean over positions of |t - s|^2, features of unit length; summed over layers. Map:
the product of the layers' distances at the first layer's resolution, upsampled, not smoothed. Score: its maximum.

Three things differ from the official code. The map is the L-th root of the product of L layers: the same order at every
position, but of the size of one distance, where the product of three, about 1e-9, vanishes in half precision and lets
one tile outweigh all others when maps are merged. A ResNet's student begins with blocks that are their shortcuts
(`Backbone.untrained`): it learns faster. And the state kept is that of lowest validation loss, not of lowest
mean map, which favours whatever shrinks the product.

Symbols: N tiles, h, w tile size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.image_scaling import ScaledImages
from edge_ad.methods.parts.imitation import SGD, feature_distance
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.tiling import Size

SMALLEST_DISTANCE = 1e-7  # the logarithm of zero has no product


class StfpmHead(ScaledImages):
    """The student and the distance to the teacher."""

    def __init__(self, teacher: Backbone, tile_size: Size) -> None:
        super().__init__(teacher.mean, teacher.std)
        self.student = teacher.untrained()
        first, *deeper = teacher.map_sizes(tile_size)
        self.to_first = nn.ModuleList(UpsampleSmooth(size, first, sigma_px=0) for size in deeper)
        self.to_tile = UpsampleSmooth(first, tile_size, sigma_px=0)

    def distances(self, image: Tensor, features: tuple[Tensor, ...]) -> list[Tensor]:
        """(N, 1, h', w') per layer, of ``image`` uint8 (N, h, w, 3) and the teacher's ``features``."""
        student = self.student(self.scaled(image))
        return [feature_distance(t, s) for t, s in zip(features, student, strict=True)]

    def forward(self, image: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        first, *deeper = self.distances(image, features)
        layers = torch.cat([first, *(resize(d) for resize, d in zip(self.to_first, deeper, strict=True))], dim=1)
        anomaly_map = self.to_tile(layers.clamp(min=SMALLEST_DISTANCE).log().mean(1, keepdim=True).exp())
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class Stfpm(GradientModel):
    """STFPM on any timm backbone, the student of the same architecture.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: of the teacher, see `Backbone`.
        training: see `GradientModel`.
    """

    name: ClassVar[str] = "stfpm"
    minimum_tiles: ClassVar[int] = 2
    head_takes_image: ClassVar[bool] = True
    head_keeps_f32: ClassVar[bool] = False  # a trained student's distances bear bf16, and its convolutions int8
    schedules = {  # noqa: RUF012 - read only
        # A third of the authors' steps on MVTec, so larger ones: by steps of theirs the student would still be learning
        # what is normal (docs/results.md)
        "paper": Schedule(SGD, learning_rate=1.6, batch_size=32, steps=200, keep_best=True, decay_at=0.75),
        "original": Schedule(SGD, learning_rate=0.4, batch_size=32, epochs=100, keep_best=True),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        **training: Any,
    ) -> None:
        self.teacher = Backbone(backbone, layers, weights)
        self.teacher.map_sizes(tile_size)
        super().__init__(tile_size, self.teacher.config, **training)
        self.extractor = self.teacher
        self.weights_source = self.teacher.source
        self.feature_names = self.teacher.feature_names

    def new_head(self) -> StfpmHead:
        """See `GradientModel.new_head`."""
        return StfpmHead(self.teacher, self.tile_size)

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Mean distance per layer, summed over layers."""
        assert isinstance(head, StfpmHead)
        image, *features = inputs
        return torch.stack([d.mean() for d in head.distances(image, tuple(features))]).sum()
