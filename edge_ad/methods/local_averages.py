"""Maps of several layers, averaged over neighbourhoods, at one resolution: what PatchCore and CFA look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.methods.backbone import Backbone
from edge_ad.tiling import Size


class LocalAverages(nn.Module):
    """uint8 tiles to the maps of every tapped layer, averaged over 3 x 3 positions, at the resolution of the first."""

    def __init__(self, backbone: Backbone, positions: Size) -> None:
        super().__init__()
        self.backbone = backbone
        self.positions = positions

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Embedding (N, D, h', w') float32 of ``image`` uint8 (N, h, w, 3)."""
        # Padded apart: in int8 OpenVINO's pooling leaves its own padding out of the mean, and edges grow by a half
        first, *deeper = (F.avg_pool2d(F.pad(part, (1, 1, 1, 1)), 3, stride=1) for part in self.backbone(image))
        upsampled = (F.interpolate(part, size=self.positions, mode="bilinear") for part in deeper)
        return (torch.cat([first, *upsampled], dim=1),)
