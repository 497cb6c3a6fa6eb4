"""What a teacher is distilled from: the maps of two layers as one vector per position, as PatchCore's code has it.

Every layer's 3 x 3 neighbourhoods, averaged to `LAYER_DIMENSIONS` numbers, the deeper layer's brought to the positions
of the first; both together averaged to the dimensions wanted. Averages run over neighbouring channels: crude, but
fixed.

Source: Roth et al., arXiv 2106.08265, and amazon-science/patchcore-inspection; in EfficientAD, arXiv 2303.14535,
appendix, with 384 dimensions at the end.

Symbols: N batch, C_i channels of a layer, h' x w' positions of the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_DIMENSIONS = 1024


def patch_embedding(maps: Sequence[Tensor], dimensions: int) -> Tensor:
    """(N, dimensions, h', w') of ``maps`` (N, C_i, h_i, w_i), the first of which has the most positions."""
    size = maps[0].shape[2:]
    vectors = []
    for layer in maps:
        around = F.unfold(layer, 3, padding=1).transpose(1, 2)  # (N, positions, 9 C_i)
        pooled = F.adaptive_avg_pool1d(around, LAYER_DIMENSIONS).transpose(1, 2)
        pooled = pooled.reshape(len(layer), LAYER_DIMENSIONS, *layer.shape[2:])
        vectors.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
    both = torch.cat(vectors, dim=1).flatten(2).transpose(1, 2)  # (N, h' w', layers * LAYER_DIMENSIONS)
    return F.adaptive_avg_pool1d(both, dimensions).transpose(1, 2).reshape(len(both), dimensions, *size)
