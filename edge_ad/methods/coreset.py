"""Greedy k-centre coreset: the few points that leave no other point far from all of them.

Source: Sener & Savarese, arXiv 1708.00489, algorithm 1, as PatchCore uses it (arXiv 2106.08265, section 3.2): choose
the point farthest from those chosen, again and again; distances are taken after a random projection to fewer
dimensions.

Symbols: n points, k dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_ad.progress import Progress, no_progress

PROJECTED_DIMENSIONS = 128  # as the official code of PatchCore
_STEPS_PER_REPORT = 100


def random_projection(dimensions: int, generator: torch.Generator) -> Tensor:
    """(dimensions, k) matrix that nearly keeps distances; the identity where there are no more than k dimensions."""
    if dimensions <= PROJECTED_DIMENSIONS:
        return torch.eye(dimensions)
    return torch.randn(dimensions, PROJECTED_DIMENSIONS, generator=generator) / math.sqrt(PROJECTED_DIMENSIONS)


def farthest_points(points: Tensor, count: int, first: int, progress: Progress = no_progress) -> Tensor:
    """Indices int64 (count,) in the order they are chosen: ``first``, then always the point farthest from the chosen.

    Args:
        points: float (n, k), on any device.
        count: 1 to n. A prefix of the result is the smaller coreset.
        first: index of the first one.
        progress: told every `_STEPS_PER_REPORT` points.

    One pass over the points per step, |x|^2 - 2 x c + |c|^2 into buffers that are reused, and no wait for the device.
    """
    # Centred: the expansion loses the digits of a common offset. Stored by dimension: a quarter of the time per product
    points = (points - points.mean(0)).T.contiguous().T
    squares = (points * points).sum(1)
    nearest = torch.full_like(squares, torch.inf)  # squared distance to the chosen set; -inf: in it
    distance = torch.empty_like(squares)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    index = torch.tensor([first], device=points.device)
    for step in range(count):
        chosen[step : step + 1] = index
        torch.addmv(squares, points, points.index_select(0, index)[0], alpha=-2, out=distance)
        distance += squares.index_select(0, index)
        torch.minimum(nearest, distance, out=nearest)
        nearest.index_fill_(0, index, -torch.inf)
        index = nearest.argmax(0, keepdim=True)
        if (step + 1) % _STEPS_PER_REPORT == 0 or step + 1 == count:
            progress(step + 1, count, "coreset")
    return chosen
