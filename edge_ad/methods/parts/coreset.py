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
_PIECE = 32768  # numbers


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

    A step is one product, of the point chosen with a table whose columns are (-2 x, |x|^2, 1), into a buffer that is
    reused, and a running minimum; nothing waits for the device.
    """
    centred = points - points.mean(0)  # |x|^2 - 2 x c + |c|^2 loses the digits of a common offset
    squares = (centred * centred).sum(1)
    # By dimension, (k + 2, n): a quarter of the time that the product takes by point
    table = torch.cat([-2 * centred.T, squares[None], torch.ones_like(squares)[None]]).contiguous()
    nearest = torch.full_like(squares, torch.inf)  # squared distance to the chosen set; -inf: in it
    distance = torch.empty_like(squares)
    # Torch hands larger pieces to all cores at once, which takes longer than the minimum itself on a busy machine
    piece = _PIECE if points.device.type == "cpu" else len(squares)
    pieces = list(zip(nearest.split(piece), distance.split(piece), strict=True))
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    index = torch.tensor([first], device=points.device)
    for step in range(count):
        chosen[step : step + 1] = index
        column = table.index_select(1, index)[:, 0]
        torch.mv(table.T, torch.cat([column[:-2] / -2, column[-1:], column[-2:-1]]), out=distance)
        for least, new in pieces:
            torch.minimum(least, new, out=least)
        nearest.index_fill_(0, index, -torch.inf)
        index = nearest.argmax(0, keepdim=True)
        if (step + 1) % _STEPS_PER_REPORT == 0 or step + 1 == count:
            progress(step + 1, count, "coreset")
    return chosen
