"""The region of interest: where in the image to look. What lies outside is painted over before any model sees it.

Models are trained on images painted alike, so that to them a fixture that moves or a window behind the part is the same
flat grey on every image. Nothing there can raise an alarm, whatever a method makes of flat grey: tiles that show
nothing else are not run and have no part in the score, and the map is as low outside as at its lowest place inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import InputError
from edge_ad.imaging import encode_png, read_image, resize_mask
from edge_ad.tiling import Location, Size, TileGrid, format_size

PAINT = (124, 116, 104)  # the mean colour of ImageNet, nothing to its networks. Another would change every verdict
BRIGHTEST_BLACK = 127  # of 255: half way, so that neither a camera's noise nor JPEG turns black into white


@dataclass(frozen=True, eq=False)
class Roi:
    """``inside`` bool (H, W): where to look, at the size images are resized to."""

    inside: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, size: Size, images: Size | None = None) -> Roi:
        """From an image file: to look at is what is above `BRIGHTEST_BLACK` in any channel; the rest is painted over.

        Args:
            path: a file as `read_image` reads it.
            size: (H, W) that the region is resized to.
            images: (H, W) of the images it was drawn for, of the same proportions to a pixel; None: not checked.

        Raises:
            UnreadableImageError, PixelFormatError: see `read_image`.
            InputError: other proportions; nothing is left to look at, or nothing to paint over.
        """
        return cls.drawn(read_image(path), path, size, images)

    @classmethod
    def drawn(cls, image: NDArray[np.uint8], path: Path, size: Size, images: Size | None = None) -> Roi:
        """`read` of a file that is decoded already, uint8 (h, w, 3); ``path`` is for messages alone."""
        drawn = image.max(axis=2) > BRIGHTEST_BLACK
        if images is not None and not _are_alike(drawn.shape, images):
            raise InputError(
                f"{path} is {format_size(drawn.shape)}, but the images are {format_size(images)}; "
                "draw the region on one of them, at any scale"
            )
        inside = resize_mask(drawn, size)
        if inside.all() or not inside.any():
            what = "nothing is black" if inside.any() else "all is black"
            raise InputError(f"{path}: {what}; paint black what is to be left out, and white where to look")
        return cls(inside)

    def png(self) -> bytes:
        """As a file that `read` reads: the same bytes for the same region."""
        return encode_png(self.inside.astype(np.uint8) * 255)

    def blank_tiles(self, grid: TileGrid) -> tuple[Location, ...]:
        """The tiles of which nothing is left, in grid order: they need not be run."""
        return tuple(location for location in grid.locations if not self.inside[grid.window(location)].any())

    def quieten(self, maps: NDArray[np.float32]) -> None:
        """Give ``maps`` (N, H, W), in place, the lowest value of their inside everywhere outside."""
        lowest = maps.min(axis=(1, 2), where=self.inside, initial=np.inf)
        np.copyto(maps, lowest[:, None, None], where=~self.inside)

    def paint(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of ``images`` uint8 (N, H, W, 3) RGB, painted over outside of the region."""
        keep, paint = self._stencils
        painted: NDArray[np.uint8] = images & keep
        painted |= paint
        return painted

    @cached_property
    def _stencils(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """What is kept of an image's bits, and what is put in their place: (H, W, 3) each."""
        keep = np.repeat(self.inside.astype(np.uint8)[..., None] * 255, 3, axis=2)
        return keep, ~keep & np.array(PAINT, np.uint8)


def _are_alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, but for a pixel by which a side was rounded."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
