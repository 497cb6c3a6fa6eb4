"""Numbers of eight bits inside a torch module: what a product needs for an engine to multiply in int8.

A product runs in int8 where one side is a constant of whole multiples of `STEP` and the other passes `rounded`. In
torch both are float32; `edge_ad.exporters.int8_products` stores the constant in one byte per number.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
LOWEST = -128
STEP = 1 / 128  # a power of two: multiples of it are exact in every float type


def whole_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` (..., n) as whole multiples of `STEP` (..., n) in (-1, 1), times a scale per row (..., 1).

    >>> values, scale = whole_rows(torch.tensor([[0.5, -2.0], [0.0, 0.0]]))
    >>> (values * 128).tolist(), (values * scale)[0].tolist()
    ([[32.0, -127.0], [0.0, 0.0]], [0.5039370059967041, -2.0])
    """
    largest = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / (LARGEST * STEP), 1.0)
    return (rows / (scale * STEP)).round() * STEP, scale


def rounded(values: Tensor, step: float = STEP, lowest: int = LOWEST) -> Tensor:
    """``values`` at the nearest of the 256 multiples of ``step`` from ``lowest`` on, -255 to 0, ties to even, float32.

    >>> (rounded(torch.tensor([-3.0, 0.005, 0.99, 1.0])) * 128).tolist()
    [-128.0, 1.0, 127.0, 127.0]
    """
    return torch.fake_quantize_per_tensor_affine(values, step, -lowest, 0, 255)
