"""Tiles' windows on feature maps of the whole image: the extractor runs once, every head reads its own part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import GeometryError
from edge_ad.runtime.session import TensorSpec
from edge_ad.tiling import FeatureAxes, Location, TileGrid


class FeatureWindows:
    """What heads are fed where the extractor runs over the whole image.

    Args:
        grid: the tile plan.
        outputs: of the extractor's graph, over the padded image.
        axes: of the feature maps.
        batch_size: of the features that are cut; a session of torch takes any, whatever its outputs say.

    Attributes:
        shapes: of the windows by name, without the batch axis.

    Raises:
        GeometryError: an output is no feature map, or a tile begins or ends between two positions of one.
    """

    def __init__(
        self, grid: TileGrid, outputs: Mapping[str, TensorSpec], axes: FeatureAxes, batch_size: int = 1
    ) -> None:
        self.grid = grid
        for spec in outputs.values():
            if len(spec.shape) != len(axes) or min(spec.shape) < 1:
                raise GeometryError(f"expected {spec.name} as a feature map {axes}, but got {spec.shape}")
        self._windows = {
            name: {
                location: axes.window(*grid.window_on(location, axes.positions(spec.shape)))
                for location in grid.locations
            }
            for name, spec in outputs.items()
        }
        self._buffers: dict[str, NDArray[Any]] = {}
        for name, spec in outputs.items():
            window = self._windows[name][grid.locations[0]]
            sizes = [len(range(size)[part]) for size, part in zip(spec.shape[1:], window[1:], strict=True)]
            self._buffers[name] = np.zeros((batch_size, *sizes), spec.dtype)
        self.shapes = {name: buffer.shape[1:] for name, buffer in self._buffers.items()}

    def cut(self, features: Mapping[str, NDArray[Any]], location: Location) -> dict[str, NDArray[Any]]:
        """The parts of ``features`` that belong to a tile: copies, valid until the next call."""
        for name, whole in features.items():
            np.copyto(self._buffers[name], whole[self._windows[name][location]])
        return self._buffers
