"""What every method offers: a frozen extractor shared by all tiles, and a head per tile model that can be fitted.

``extractor(image) -> features...`` and ``head(features...) -> anomaly_map, pred_score`` are the two graphs of a bundle.
Fitting sees features through `TileStream` alone, so the same code fits a head on the features of the torch extractor,
or on those of its quantised form: both sides of a distance then carry the same rounding.

Symbols: N batch, h, w tile size, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ad.tiling import Location, Size, TileGrid

Extract = Callable[[Tensor], Sequence[Tensor]]  # uint8 (N, h, w, 3) RGB -> feature tensors, batch first


@dataclass(frozen=True)
class TileStream:
    """The training tiles of one tile model, with their features, read anew each time it is iterated.

    Args:
        images: uint8 (N, H, W, 3) RGB; a memory map will do, tiles are views on it.
        grid: the tile plan.
        locations: the tile locations this model serves (all of them where one model is shared).
        extract: features of a batch of tiles.
        batch_size: tiles per batch, at most.
        on_batch: called with the number of tiles after each batch.
    """

    images: NDArray[np.uint8]
    grid: TileGrid
    locations: tuple[Location, ...]
    extract: Extract
    batch_size: int = 16
    on_batch: Callable[[int], object] | None = None

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.images) * len(self.locations)

    def tiles(self) -> Iterator[NDArray[np.uint8]]:
        """Batches (n, h, w, 3) of tiles, image by image within a location."""
        for location in self.locations:
            rows, cols = self.grid.window(location)
            for start in range(0, len(self.images), self.batch_size):
                batch = self.images[start : start + self.batch_size]
                tiles = np.zeros((len(batch), *self.grid.tile_size, 3), np.uint8)  # zeros are the padding
                inside = batch[:, rows, cols]
                tiles[:, : inside.shape[1], : inside.shape[2]] = inside
                yield tiles

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of features, one tensor (n, ...) per feature."""
        for tiles in self.tiles():
            yield tuple(self.extract(torch.from_numpy(tiles)))
            if self.on_batch:
                self.on_batch(len(tiles))


class TileModel(ABC):
    """One method, configured for one tile size.

    Attributes:
        name: on the command line and in manifests.
        minimum_tiles: fewest training tiles a head can be fitted on.
        feature_names: outputs of the extractor and inputs of the head, in order.
        extractor: the frozen part, shared by every location.
        config: everything needed to build it again (`create_model`), JSON types only.
        weights_source: where the extractor's weights came from.
    """

    name: ClassVar[str]
    minimum_tiles: ClassVar[int]
    feature_names: ClassVar[tuple[str, ...]]
    extractor: nn.Module
    weights_source: str

    def __init__(self, tile_size: Size, config: dict[str, Any]) -> None:
        self.tile_size = tile_size
        self.config = config

    @abstractmethod
    def head_from_state(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A fitted head again, from the ``state_dict()`` of one: sizes that depend on the data are read off it."""

    @abstractmethod
    def fit(self, tiles: TileStream) -> nn.Module:
        """A head fitted on normal tiles.

        Raises:
            TooFewImagesError: fewer tiles than `minimum_tiles`.
            NonFiniteValuesError: NaN or infinity in the features.
        """

    @torch.no_grad()
    def extract(self, image: Tensor) -> Sequence[Tensor]:
        """Features of ``image`` uint8 (N, h, w, 3) by the torch extractor."""
        features: Sequence[Tensor] = self.extractor(image)
        return features
