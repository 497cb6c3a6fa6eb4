"""What students of a frozen teacher share: how far their features are from its, how those vary, an optimiser.

Symbols: N batch, C channels, h' x w' positions of a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

SGD = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)  # of STFPM's official code


def feature_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance (N, 1, h', w') in [0, 4] of two feature maps (N, C, h', w') of unit length at every position.

    It is 2 (1 - cosine), without the digits that 1 - cosine loses where both agree.
    """
    difference = F.normalize(teacher, dim=1) - F.normalize(student, dim=1)
    return (difference * difference).sum(1, keepdim=True)


def channel_statistics(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, C, 1, 1) per channel of maps (N, C, h', w'), one pass, summed in float64."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for each in maps:
        values = each.double()
        count += values.numel() // values.shape[1]
        total = total + values.sum((0, 2, 3), keepdim=True).cpu()
        squares = squares + (values * values).sum((0, 2, 3), keepdim=True).cpu()
    mean = total / count
    return mean, (squares / count - mean * mean).clamp(min=1e-12).sqrt()
