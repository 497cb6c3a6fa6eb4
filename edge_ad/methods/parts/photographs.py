"""Ordinary photographs, which show a student what it is not to imitate. No product may be on them.

Source: Batzner, Heckler and König, "EfficientAD", arXiv 2303.14535, section 3.2: one per step, at twice the tile's size
and cropped from the middle, three in ten of them grey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_ad.errors import EmptyDataError
from edge_ad.imaging import image_files, read_image, resize
from edge_ad.tiling import Size

GREY_SHARE = 0.3
MEMORY_BUDGET_BYTES = 2 * 1024**3  # photographs drawn once are held up to it


def photograph_files(folder: Path) -> list[Path]:
    """The image files of a folder, or those of its sub-folders where it has none of its own.

    Raises:
        DataNotFoundError: no such folder.
        EmptyDataError: no images in it.
    """
    if files := image_files(folder):
        return files
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    if files := [file for path in inner for file in image_files(path)]:
        return files
    raise EmptyDataError(f"no images in {folder}; name a folder of ordinary photographs")


def listing_digest(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 of the names below ``folder`` and the sizes of ``files``: nobody reads a million photographs for it."""
    listed = "\n".join(f"{file.relative_to(folder)} {file.stat().st_size}" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


class Photographs:
    """The images of a folder, read when they are drawn, and held from then on while they fit in memory.

    The folder is looked at no sooner: what was trained with it is evaluated and exported without.

    Args:
        folder: see `photograph_files`.
        tile_size: (h, w) pixels of what is drawn.
    """

    def __init__(self, folder: Path, tile_size: Size) -> None:
        self.folder = folder
        self.tile_size = tile_size
        self._held: dict[int, Tensor] = {}

    @cached_property
    def files(self) -> list[Path]:
        """See `photograph_files`, errors too."""
        return photograph_files(self.folder)

    def draw(self, count: int, device: torch.device = torch.device("cpu")) -> Tensor:  # noqa: B008 - immutable
        """``count`` of them, uint8 (n, h, w, 3) RGB on ``device``, by torch's global generator of the CPU.

        Raises:
            UnreadableImageError: one is damaged.
        """
        chosen = torch.randint(len(self.files), (count,)).tolist()
        grey = (torch.rand(count) < GREY_SHARE).tolist()
        middles = [self._middle(index, device) for index in chosen]
        return torch.stack([_grey(part) if is_grey else part for part, is_grey in zip(middles, grey, strict=True)])

    def _middle(self, index: int, device: torch.device) -> Tensor:
        """One of them as it is drawn, in colour."""
        if index in self._held:
            return self._held[index].to(device)
        height, width = self.tile_size
        image = resize(read_image(self.files[index]), (2 * height, 2 * width))
        middle = image[height // 2 : height // 2 + height, width // 2 : width // 2 + width]
        found = torch.from_numpy(np.ascontiguousarray(middle)).to(device)
        if found.nbytes * (len(self._held) + 1) <= MEMORY_BUDGET_BYTES:
            self._held[index] = found
        return found


def _grey(image: Tensor) -> Tensor:
    return luminance(image).round().byte().expand(-1, -1, 3)


def luminance(image: Tensor) -> Tensor:
    """Grey values float32 (..., 1) in [0, 255] of ``image`` (..., 3) RGB, ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image.device, non_blocking=True)
    return (image.float() * weights).sum(-1, keepdim=True)


def jitter(image: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """A copy of ``image`` uint8 (N, h, w, 3), each with its brightness, contrast or saturation times U(low, high)."""
    shape = (len(image), 1, 1, 1)
    factor = torch.empty(shape, device=image.device).uniform_(low, high)
    kind = torch.randint(3, shape, device=image.device)
    grey = luminance(image)
    mean = grey.mean((1, 2, 3), keepdim=True)
    pale = torch.where(kind == 0, torch.zeros_like(grey), torch.where(kind == 1, mean.expand_as(grey), grey))
    return (pale + (image.float() - pale) * factor).round().clamp(0, 255).byte()
