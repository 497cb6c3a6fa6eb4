"""Maps of several layers, averaged over neighbourhoods, at one resolution: what PatchCore and CFA look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.methods.parts.backbone import Backbone
from edge_ad.tiling import FeatureAxes, Size


class LocalAverages(nn.Module):
    """uint8 tiles to the maps of every tapped layer, averaged over 3 x 3 positions, at the resolution of the first.

    Args:
        backbone: taps the layers.
        positions: (h', w') of the first.
        axes: of the embedding. Engines convolve channels last: a head that wants them so spares moving every tensor.
    """

    def __init__(self, backbone: Backbone, positions: Size, axes: FeatureAxes = FeatureAxes.NCHW) -> None:
        super().__init__()
        self.axes = axes
        self.backbone = backbone
        self.positions = positions

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Embedding (N, D, h', w') float32, or in another order of `axes`, of ``image`` uint8 (N, h, w, 3)."""
        # Padded apart: in int8 OpenVINO's pooling leaves its own padding out of the mean, and edges grow by a half
        first, *deeper = (F.avg_pool2d(F.pad(part, (1, 1, 1, 1)), 3, stride=1) for part in self.backbone(image))
        upsampled = (F.interpolate(part, size=self.positions, mode="bilinear") for part in deeper)
        embedding = torch.cat([first, *upsampled], dim=1)
        return (embedding.permute(0, 2, 3, 1) if self.axes is FeatureAxes.NHWC else embedding,)
