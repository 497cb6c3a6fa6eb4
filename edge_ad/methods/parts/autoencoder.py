"""EfficientAD's autoencoder: a whole tile through 64 numbers, back to a description of every position.

Source: Batzner, Heckler and König, "EfficientAD", arXiv 2303.14535, appendix. Their sizes are those of 256-px tiles;
for others they scale, so that the code in the middle stays one position: a larger one would let details through.

Symbols: N batch, h, w tile size, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.tiling import Size

CODE = 64  # numbers in the middle
ENCODER = (32, 32, 64, 64, 64)  # channels; each halves the size
# The size before a decoder's convolution, which adds one, is side / divisor - shrink: 3, 8, 15, 32, 63, 127 at 256
DECODER = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
DROPOUT = 0.2
SMALLEST_PX = 32


class Autoencoder(nn.Module):
    """From scaled images (see `scale_image`) to descriptions.

    Args:
        tile_size: (h, w) pixels, at least `SMALLEST_PX`.
        channels: C of the descriptions.
        size: (h', w') of the descriptions.

    Raises:
        InputError: the tile is too small.
    """

    def __init__(self, tile_size: Size, channels: int, size: Size) -> None:
        super().__init__()
        if min(tile_size) < SMALLEST_PX:
            raise InputError(
                f"a tile of {tile_size[0]}x{tile_size[1]} is too small for EfficientAD's autoencoder; "
                f"use at least {SMALLEST_PX}x{SMALLEST_PX}"
            )
        encoder: list[nn.Module] = []
        width = 3
        for out in ENCODER:
            encoder += [nn.Conv2d(width, out, 4, stride=2, padding=1), nn.ReLU()]
            width = out
        rest = (tile_size[0] >> len(ENCODER), tile_size[1] >> len(ENCODER))
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, CODE, rest))
        decoder: list[nn.Module] = []
        for divisor, shrink in DECODER:
            # Two at least: where a side becomes one, engines take its first value and torch the mean of them
            rows, cols = (max(2, side // divisor - shrink) for side in tile_size)
            decoder += [Resize((rows, cols)), nn.Conv2d(CODE, CODE, 4, padding=2), nn.ReLU(), nn.Dropout(DROPOUT)]
        last = nn.Conv2d(CODE, channels, 3, padding=1)
        self.decoder = nn.Sequential(*decoder, Resize(size), nn.Conv2d(CODE, CODE, 3, padding=1), nn.ReLU(), last)

    def forward(self, scaled: Tensor) -> Tensor:
        """(N, C, h', w') of ``scaled`` (N, 3, h, w)."""
        described: Tensor = self.decoder(self.encoder(scaled))
        return described


class Resize(nn.Module):
    """Bilinear, to a fixed size."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, height, width) at the size."""
        return F.interpolate(values, size=self.size, mode="bilinear", align_corners=False)
