"""Smooths the seams of a merged map, and nothing else of it.

OpenCV's filter rather than a matrix product: the threads of numpy's BLAS go on spinning for milliseconds after every
product and take the cores from the inference that follows (nine tiles took 1.7 times as long).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ad.tiling import SEAM_BAND, SEAM_SIGMA_PX, TileGrid, gaussian_radius


class SeamSmoother:
    """Gaussian smoothing of a merged map in the bands along inner tile borders; the rest stays as it is.

    Only the pixels that are written are computed, from what the map was before. Borders of the image are mirrored
    ("reflect" in scipy.ndimage).

    Args:
        grid: the tile plan.
        sigma_px: standard deviation of the Gaussian, pixels.
        band: reach of the bands each side of a border, as a fraction of the tile size.

    Source: arXiv 2403.04932, section 3.4: sigma 2, bands of 10 % of the tile size.
    """

    def __init__(self, grid: TileGrid, sigma_px: float = SEAM_SIGMA_PX, band: float = SEAM_BAND) -> None:
        reach = gaussian_radius(sigma_px)
        self._sigma_px = sigma_px
        self._kernel = (2 * reach + 1, 2 * reach + 1)
        self._strips = [
            _strip(axis, start, stop, reach, grid.image_size[axis])
            for axis in (0, 1)
            for start, stop in grid.seam_bands(axis, band)
        ]

    def __call__(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Smooth the seams of ``anomaly_map`` (H, W) or (B, H, W) float32 in place and return it."""
        for each in anomaly_map if anomaly_map.ndim == 3 else anomaly_map[None]:
            blurred = [self._blur(each[strip.source])[strip.inner] for strip in self._strips]
            for strip, values in zip(self._strips, blurred, strict=True):
                each[strip.target] = values
        return anomaly_map

    def _blur(self, source: NDArray[np.float32]) -> NDArray[np.float32]:
        # A copy, so that OpenCV mirrors at the borders of the strip instead of finding pixels beyond them
        strip = np.ascontiguousarray(source)
        blurred = cv2.GaussianBlur(strip, self._kernel, self._sigma_px, borderType=cv2.BORDER_REFLECT)
        return blurred.astype(np.float32, copy=False)  # as it is already: OpenCV's stubs do not say so


class _Strip(NamedTuple):
    target: tuple[slice, ...]  # pixels of the map that are smoothed
    source: tuple[slice, ...]  # with those the kernel reaches
    inner: tuple[slice, ...]  # the target within the source


def _strip(axis: int, start: int, stop: int, reach: int, size: int) -> _Strip:
    first, last = max(0, start - reach), min(size, stop + reach)
    return _Strip(
        *(
            (slice(None),) * axis + (part,)
            for part in (slice(start, stop), slice(first, last), slice(start - first, stop - first))
        )
    )
