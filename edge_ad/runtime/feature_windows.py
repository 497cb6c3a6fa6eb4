"""Tiles' windows on feature maps of the whole image: the extractor runs once, every head reads its own part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.runtime.session import TensorSpec
from edge_ad.tiling import Location, Size, TileGrid


class FeatureWindows:
    """What heads are fed where the extractor runs over the whole image.

    Args:
        grid: the tile plan.
        outputs: of the extractor's graph, (batch, C, h', w') each, over the padded image.
        batch_size: of the features that are cut; a session of torch takes any, whatever its outputs say.

    Attributes:
        shapes: (C, h'_t, w'_t) of the windows by name.

    Raises:
        GeometryError: a tile does not begin or end between two positions of a feature map.
    """

    def __init__(self, grid: TileGrid, outputs: Mapping[str, TensorSpec], batch_size: int = 1) -> None:
        self.grid = grid
        self._windows = {
            name: {location: grid.window_on(location, _positions(spec)) for location in grid.locations}
            for name, spec in outputs.items()
        }
        self._buffers: dict[str, NDArray[Any]] = {}
        for name, spec in outputs.items():
            rows, cols = self._windows[name][grid.locations[0]]
            shape = (batch_size, *spec.shape[1:-2], rows.stop - rows.start, cols.stop - cols.start)
            self._buffers[name] = np.zeros(shape, spec.dtype)
        self.shapes = {name: buffer.shape[1:] for name, buffer in self._buffers.items()}

    def cut(self, features: Mapping[str, NDArray[Any]], location: Location) -> dict[str, NDArray[Any]]:
        """The parts of ``features`` (batch, C, h', w') that belong to a tile: copies, valid until the next call."""
        for name, whole in features.items():
            rows, cols = self._windows[name][location]
            np.copyto(self._buffers[name], whole[..., rows, cols])
        return self._buffers


def _positions(spec: TensorSpec) -> Size:
    height, width = spec.shape[-2:]
    return height, width
