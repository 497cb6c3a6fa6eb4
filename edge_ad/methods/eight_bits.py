"""Numbers of eight bits inside a torch module: what a product needs for an engine to multiply in int8.

A product runs in int8 where one side is a constant of whole multiples of `WEIGHT_STEP` and the other passes `rounded`.
In torch both are float32; `edge_ad.exporters.int8_products` stores the constant in one byte per number.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
WEIGHT_STEP = 1 / 128  # a power of two: multiples of it are exact in every float type


def whole_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` (..., n) as whole multiples of `WEIGHT_STEP` (..., n) in (-1, 1), times a scale per row (..., 1).

    >>> values, scale = whole_rows(torch.tensor([[0.5, -2.0], [0.0, 0.0]]))
    >>> (values * 128).tolist(), (values * scale)[0].tolist()
    ([[32.0, -127.0], [0.0, 0.0]], [0.5039370059967041, -2.0])
    """
    largest = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / (LARGEST * WEIGHT_STEP), 1.0)
    return (rows / (scale * WEIGHT_STEP)).round() * WEIGHT_STEP, scale


def rounded(values: Tensor, step: float) -> Tensor:
    """``values`` at the nearest multiple of ``step`` between -128 and 127 of them, ties to even, float32."""
    return torch.fake_quantize_per_tensor_affine(values, step, 0, -LARGEST - 1, LARGEST)
