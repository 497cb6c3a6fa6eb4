"""The region of interest: where in the image to look. What lies outside is painted over before any model sees it.

Models are trained on images painted alike, so that to them a fixture that moves or a window behind the part is the same
flat grey on every image: nothing there can raise an alarm, whatever a method makes of its map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import InputError
from edge_ad.imaging import encode_png, read_mask, resize_mask
from edge_ad.setups import ExtractorScope, Setup
from edge_ad.tiling import Location, Size

PAINT = (124, 116, 104)  # the mean colour of ImageNet, nothing to its networks. Another would change every verdict


@dataclass(frozen=True, eq=False)
class Roi:
    """``inside`` bool (H, W): where to look, at the size images are resized to."""

    inside: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, size: Size) -> Roi:
        """From an image file: black is painted over, whatever else is looked at. Resized to ``size`` (H, W).

        Raises:
            UnreadableImageError: no image.
            InputError: nothing is left to look at, or nothing to paint over.
        """
        inside = resize_mask(read_mask(path), size)
        if inside.all() or not inside.any():
            what = "nothing is black" if inside.any() else "all is black"
            raise InputError(f"{path}: {what}; paint black what is to be left out, and white where to look")
        return cls(inside)

    def png(self) -> bytes:
        """As a file that `read` reads: the same bytes for the same region."""
        return encode_png(self.inside.astype(np.uint8) * 255)

    def blank_tiles(self, setup: Setup) -> tuple[Location, ...]:
        """The tiles of which nothing is left, in grid order: models are shown the same on every image.

        None where features are cut from the whole image: at a tile's edge they know what lies beyond it.
        """
        if setup.extractor_scope is ExtractorScope.IMAGE:
            return ()
        grid = setup.grid
        return tuple(location for location in grid.locations if not self.inside[grid.window(location)].any())

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
