"""Upsampling and Gaussian smoothing of an anomaly map, as two small matrix products.

Both steps are linear and separable, so ``smooth(upsample(D))`` is ``A_h @ D @ A_w.T`` with ``A = G @ U`` built once per
size: exact at the borders, 5 million multiply-adds for 64x64 -> 256x256 where a dense 33x33 kernel takes 71 million,
and nothing but MatMul in the exported graph.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ad.tiling import Size, gaussian_matrix


def bilinear_matrix(source: int, target: int, *, align_corners: bool = False) -> NDArray[np.float64]:
    """(target, source) matrix of 1-D linear resizing, as torch's: half-pixel centres, or ends upon ends."""
    if align_corners:
        return linear_matrix(source, target, first=0, step=(target - 1) / max(source - 1, 1))
    step = target / source
    return linear_matrix(source, target, first=(step - 1) / 2, step=step)


def linear_matrix(source: int, target: int, *, first: float, step: float) -> NDArray[np.float64]:
    """(target, source) matrix of 1-D linear interpolation between values that lie ``step`` pixels apart.

    Pixels before the first value, at pixel ``first``, and behind the last repeat those.
    """
    centres = np.clip((np.arange(target) - first) / step if step else np.zeros(target), 0, source - 1)
    left = np.minimum(np.floor(centres).astype(int), max(source - 2, 0))
    fraction = centres - left
    matrix = np.zeros((target, source))
    matrix[np.arange(target), left] = 1 - fraction
    matrix[np.arange(target), np.minimum(left + 1, source - 1)] += fraction
    return matrix


class UpsampleSmooth(nn.Module):
    """Bilinear upsampling to the tile's size, then a Gaussian of ``sigma_px`` tile pixels.

    Args:
        source: (height, width) of the maps that come in.
        target: (height, width) of the tile.
        sigma_px: standard deviation of the Gaussian, cut at 4 sigma with mirrored borders as in scipy.ndimage; 0: none.
        align_corners: see `bilinear_matrix`.
        cells: (first, step) pixels: where the values lie along both axes, see `linear_matrix`; evenly over the tile
            where None.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self,
        source: Size,
        target: Size,
        sigma_px: float = 4.0,
        *,
        align_corners: bool = False,
        cells: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        for name, small, large in zip(("left", "right"), source, target, strict=True):
            if cells:
                matrix = linear_matrix(small, large, first=cells[0], step=cells[1])
            else:
                matrix = bilinear_matrix(small, large, align_corners=align_corners)
            if sigma_px > 0:
                matrix = gaussian_matrix(large, sigma_px) @ matrix
            self.register_buffer(name, torch.from_numpy(matrix.astype(np.float32)), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 1, h, w) float32 of ``maps`` (N, 1, h', w')."""
        return self.left @ maps @ self.right.T
