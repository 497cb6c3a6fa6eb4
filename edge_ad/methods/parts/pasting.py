"""CutPaste's defects: a piece of a tile put down elsewhere on it, one per patch at most.

Source: Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", arXiv 2104.04015,
sections 2.1 and 2.2. A *patch* paste is a rectangle of 2 to 15 % of the patch's area and an aspect ratio between 0.3
and 1 / 0.3; a *scar* is 2 to 16 pixels wide and 10 to 25 long, turned by up to 45 degrees. Both are jittered in
brightness, contrast and saturation. Where this differs: no hue, which torch has no operation for; contrast is taken
about the tile's mean instead of the piece's; aspects are uniform in their logarithm.

All pastes of a batch are made at once: every pixel looks up the paste of its own patch and where it comes from.

Symbols: N batch, h, w tile size, r x c patches per tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from edge_ad.methods.parts.photographs import luminance
from edge_ad.tiling import Size

AREA = (0.02, 0.15)  # of the patch
ASPECT = (0.3, 1 / 0.3)
SCAR_WIDTH_PX, SCAR_LENGTH_PX = (2.0, 16.0), (10.0, 25.0)
SCAR_ANGLE = math.pi / 4
JITTER = 0.1


class Paste(IntEnum):
    """What is on a patch."""

    NONE = 0
    PATCH = 1
    SCAR = 2


@dataclass(frozen=True)
class Pastes:
    """One paste per patch, every tensor (N, r, c).

    Args:
        kind: int64, of `Paste`.
        height, width: of the piece in pixels.
        angle: by which it is turned, in radians.
        target_row, target_col: pixel the piece's middle comes to lie on.
        source_row, source_col: pixel it comes from.
        brightness, contrast, saturation: factors.
    """

    kind: Tensor
    height: Tensor
    width: Tensor
    angle: Tensor
    target_row: Tensor
    target_col: Tensor
    source_row: Tensor
    source_col: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor

    def at(self, rows: Tensor, cols: Tensor) -> Pastes:
        """For every pixel the paste of its patch, (N, h, w): ``rows`` (h,) and ``cols`` (w,) are numbers of patches."""
        return Pastes(*(getattr(self, field.name)[:, rows][:, :, cols] for field in fields(self)))

    def to(self, device: torch.device) -> Pastes:
        """The same on ``device``."""
        return Pastes(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def patch_edges(size: int, count: int) -> list[int]:
    """Where ``count`` patches begin along a side of ``size`` pixels, and where the last one ends."""
    return [-(-index * size // count) for index in range(count + 1)]


def draw_pastes(kinds: Tensor, tile_size: Size) -> Pastes:
    """Random pastes of ``kinds`` int64 (N, r, c), each inside its patch and from inside the tile.

    Random numbers come from torch's global generator of the CPU.
    """
    _, rows, cols = kinds.shape
    vertical, horizontal = (
        torch.tensor(patch_edges(size, count)) for size, count in zip(tile_size, (rows, cols), strict=True)
    )
    patch_height, patch_width = vertical.diff()[None, :, None].float(), horizontal.diff()[None, None, :].float()

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(kinds.shape).uniform_(low, high)

    scar = kinds == Paste.SCAR
    area = uniform(*AREA) * patch_height * patch_width
    aspect = uniform(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
    height = torch.where(scar, uniform(*SCAR_LENGTH_PX), (area * aspect).sqrt()).round()
    width = torch.where(scar, uniform(*SCAR_WIDTH_PX), (area / aspect).sqrt()).round()
    height, width = torch.minimum(height, patch_height).clamp(min=1), torch.minimum(width, patch_width).clamp(min=1)
    angle = torch.where(scar, uniform(-SCAR_ANGLE, SCAR_ANGLE), 0.0)
    sine, cosine = angle.sin().abs(), angle.cos()

    def middle(low: Tensor | float, room: Tensor | float, extent: Tensor) -> Tensor:
        """Of a piece of ``extent`` pixels whose first one is drawn from ``low`` on."""
        free = (room - extent.ceil()).clamp(min=0)
        return low + (uniform(0, 1) * (free + 1)).floor().minimum(free) + (extent - 1) / 2

    return Pastes(
        kinds.cpu(),
        height,
        width,
        angle,
        middle(vertical[None, :-1, None], patch_height, height * cosine + width * sine),
        middle(horizontal[None, None, :-1], patch_width, width * cosine + height * sine),
        middle(0.0, tile_size[0], height),
        middle(0.0, tile_size[1], width),
        *(uniform(1 - JITTER, 1 + JITTER) for _ in range(3)),
    )


def paste(tiles: Tensor, pastes: Pastes) -> tuple[Tensor, Tensor]:
    """``tiles`` uint8 (N, h, w, 3) with ``pastes``, and what was pasted: int64 (N, h, w) of `Paste`.

    A pixel (y, x) of a piece turned by a lies at (v, u) from its middle, u = dx cos a + dy sin a and
    v = dy cos a - dx sin a, and shows what lies there from the middle of where it was cut.
    """
    _, height, width, _ = tiles.shape
    row, col = torch.arange(height, device=tiles.device), torch.arange(width, device=tiles.device)
    _, rows, cols = pastes.kind.shape
    here = pastes.to(tiles.device).at(row * rows // height, col * cols // width)
    down, right = row[None, :, None] - here.target_row, col[None, None, :] - here.target_col
    sine, cosine = here.angle.sin(), here.angle.cos()
    u, v = right * cosine + down * sine, down * cosine - right * sine
    inside = (here.kind != Paste.NONE) & (u.abs() < here.width / 2) & (v.abs() < here.height / 2)
    where = inside.nonzero(as_tuple=True)  # the one wait for the device: a mask as an index would be one each
    number, *_ = where
    # A turned piece's last pixels may round to just outside the tile
    from_row = (here.source_row + v)[where].round().long().clamp(0, height - 1)
    from_col = (here.source_col + u)[where].round().long().clamp(0, width - 1)
    piece = tiles[number, from_row, from_col].float()

    def factor(values: Tensor) -> Tensor:
        return values[where][:, None]

    mean = luminance(tiles).mean((1, 2))[number]
    piece = piece * factor(here.brightness)
    piece = mean + (piece - mean) * factor(here.contrast)
    grey = luminance(piece)
    piece = grey + (piece - grey) * factor(here.saturation)
    pasted = tiles.clone()
    pasted[where] = piece.round().clamp(0, 255).byte()
    return pasted, torch.where(inside, here.kind, Paste.NONE)
