"""Weights and inputs by formula, so that a reference implementation and ours can be given the same without a file.

Used by `reference/make.py`, which runs the references, and by `test_reference_values.py`, which compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor


def waves(shape: Iterable[int], number: int) -> Tensor:
    """float32 of ``shape`` between -1 and 1: sines of the index, in float64 until the end. ``number`` shifts them."""
    shape = tuple(shape)
    index = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy(np.sin(1.7 * index + 0.3 * np.sqrt(index) + number).astype(np.float32).reshape(shape))


def weight(name: str, like: Tensor, number: int) -> Tensor:
    """Values for the tensor ``name`` of a network, the ``number``-th there, of the shape of ``like``.

    Weights with several axes are divided by the square root of what they sum over; scales and variances lie around 1,
    biases and means around 0.
    """
    values = waves(like.shape, number)
    if values.ndim > 1:
        return 2 * values / math.sqrt(values[0].numel())
    positive = name.rpartition(".")[2] in ("weight", "running_var")
    return 1 + 0.25 * values if positive else 0.25 * values


def fill(state: Mapping[str, Tensor]) -> None:
    """Set all tensors of a network's ``state_dict()`` but counters, in place, by `weight` and their place in it."""
    for number, (name, tensor) in enumerate(state.items()):
        if tensor.is_floating_point():
            tensor.copy_(weight(name, tensor, number))


def pictures(count: int, height: int, width: int) -> Tensor:
    """uint8 (count, height, width, 3)."""
    return (127.5 + 127.5 * waves((count, height, width, 3), 5).double()).round().to(torch.uint8)


def features(count: int, channels: int, height: int, width: int, number: int = 0) -> Tensor:
    """float32 (count, channels, height, width) between -2 and 2."""
    return 2 * waves((count, channels, height, width), 7 + number)


def tiles_of_layers() -> tuple[list[Tensor], list[Tensor]]:
    """Features of eight training tiles and of two others, (N, C, h', w') of four layers each, shallow to deep.

    Cubes of the index modulo a prime: without a pattern, whose nearest vectors would all be alike. All are whole 64ths
    between -2 and 3, which half precision holds exactly, and so it does means over the four positions of the deepest.
    Training tiles 4 to 7 mirror the first four about 1/2: that is every channel's mean, so vectors relative to it are
    64ths as well.
    """
    train, test = [], []
    for shape in ((6, 20, 10), (12, 10, 10), (24, 5, 4), (16, 2, 2)):
        index = torch.arange(6 * math.prod(shape)).view(6, *shape)
        values = (index**3 % 65537 % 257 - 128) / 64
        train.append(torch.cat([values[:4], 1 - values[:4]]))
        test.append(values[4:])
    return train, test


def sample(values: Tensor, count: int = 12) -> list[float]:
    """A dozen of ``values``, evenly over all of them, and their mean at the end."""
    flat = values.detach().double().flatten()
    chosen = torch.linspace(0, len(flat) - 1, min(count, len(flat))).round().long()
    return [float(f"{value:.9g}") for value in [*flat[chosen].tolist(), float(flat.mean())]]
