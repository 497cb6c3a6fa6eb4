"""What every method offers: a frozen extractor shared by all tiles, and a head per tile model that can be fitted.

``extractor(image) -> features...`` and ``head(features...) -> anomaly_map, pred_score`` are the two graphs of a bundle;
the head of a student takes the image before the features. Fitting sees both through `TileStream` alone, so the same
code fits a head on the features of the torch extractor, or on those of its quantised form: both sides of a distance
then carry the same rounding.

Symbols: N batch, h, w tile size, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ad.errors import NonFiniteValuesError, TooFewImagesError
from edge_ad.imaging import resize
from edge_ad.methods.parts.full_float32 import full_float32
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import WHOLE, FeatureAxes, Location, Size, TileGrid

Extract = Callable[[Tensor], Sequence[Tensor]]  # uint8 (N, h, w, 3) RGB -> feature tensors, batch first
ImageFeatures = Callable[[Sequence[int]], Sequence[Tensor]]  # numbers of images -> features of the whole images


@dataclass(frozen=True)
class Losses:
    """What a stage of training saw of its loss.

    Args:
        stage: what was trained.
        training: of every step.
        validation: (step, mean loss on the images held out) wherever it was measured.
        kept_step: whose state was kept; the last one's where none is chosen.
    """

    stage: str
    training: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]
    kept_step: int


class HeadInt8(StrEnum):
    """What becomes of a head in an int8 bundle, whose extractor is quantised. Found by measurement, per method."""

    REFIT = "refit"  # fitted anew on the quantised extractor's features: statistics, banks; in float, or `in_int8`
    KEEP = "keep"  # stays in float as trained, but for what `TileModel.adapt` sets
    QUANTISE = "quantise"  # likewise, its convolutions in int8; all else in float


@dataclass(frozen=True)
class TileStream:
    """The training tiles of one tile model, with what the head is fed, read anew each time it is iterated.

    Args:
        images: uint8 (N, H, W, 3) RGB; a memory map will do, tiles are cut from it.
        grid: the tile plan.
        locations: the tile locations this model serves (all of them where one model is shared), or `WHOLE`.
        extract: features of a batch of tiles.
        batch_size: tiles per batch, at most.
        on_batch: called with the number of tiles after each batch.
        with_image: the head takes the tile itself before the features.
        image_features: of whole padded images, where the extractor sees those: tiles' features are windows on them,
            and ``extract`` is not called.
        feature_axes: of ``image_features``.
    """

    images: NDArray[np.uint8]
    grid: TileGrid
    locations: tuple[Location, ...]
    extract: Extract
    batch_size: int = 16
    on_batch: Callable[[int], object] | None = None
    with_image: bool = False
    image_features: ImageFeatures | None = None
    feature_axes: FeatureAxes = FeatureAxes.NCHW

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.images) * len(self.locations)

    def cut(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Tiles uint8 (n, h, w, 3) by number: image by image within a location. A copy, zero outside the image."""
        tiles = np.zeros((len(indices), *self.grid.tile_size, 3), np.uint8)
        for tile, index in zip(tiles, indices, strict=True):
            location, image = self._place(index)
            if location == WHOLE:
                tile[:] = resize(self.images[image], self.grid.tile_size)
                continue
            rows, cols = self.grid.window(location)
            inside = self.images[image, rows, cols]
            tile[: inside.shape[0], : inside.shape[1]] = inside
        return tiles

    def head_inputs(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """What the head is fed for these tiles, one tensor (n, ...) per input, in this order.

        Raises:
            NonFiniteValuesError: NaN or infinity in the features.
        """
        if self.image_features is not None:
            features = self._windows(self.image_features, indices)
            image = torch.from_numpy(self.cut(indices)) if self.with_image else None
        else:
            image = torch.from_numpy(self.cut(indices))
            features = tuple(self.extract(image))
        if not all(torch.isfinite(feature).all() for feature in features if feature.is_floating_point()):
            raise NonFiniteValuesError("features of a training tile are NaN or infinite; check the weights")
        return (image, *features) if self.with_image and image is not None else features

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of what the head is fed, in the order of the tiles' numbers."""
        for start in range(0, len(self), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(self)))
            yield self.head_inputs(numbers)
            if self.on_batch:
                self.on_batch(len(numbers))

    def _place(self, index: int) -> tuple[Location, int]:
        """Location, and number of the image, of a tile."""
        location, image = divmod(int(index), len(self.images))
        return self.locations[location], image

    def _windows(self, image_features: ImageFeatures, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Features of these tiles, cut from those of the images they lie in."""
        locations, images = zip(*(self._place(index) for index in indices), strict=True)
        windows = []
        for whole in image_features(images):
            positions = self.feature_axes.positions(whole.shape)
            places = (self.grid.window_on(location, positions) for location in locations)
            cut = (self.feature_axes.window(*place, of_one=True) for place in places)
            windows.append(torch.stack([own[window] for own, window in zip(whole, cut, strict=True)]))
        return tuple(windows)


class TileModel(ABC):
    """One method, configured for one tile size.

    A subclass's constructor takes the tile size and keyword arguments; those are the method's parameters on the command
    line, see `edge_ad.methods.parameters`.

    Attributes:
        name: on the command line and in manifests.
        minimum_tiles: fewest training tiles a head can be fitted on.
        head_takes_image: whether the head's first input is the tile itself.
        head_int8: what becomes of the head in an int8 bundle.
        head_keeps_f32: whether the head runs in float32 where the device's default is less (bf16, f16): small
            differences of large numbers, as most distances are, lose their ranking there.
        feature_names: outputs of the extractor and inputs of the head, in order.
        feature_axes: of all of them.
        extractor: the frozen part, shared by every location.
        config: everything needed to build it again (`create_model`), JSON types only.
        weights_source: where the extractor's weights came from.
        device: where heads are fitted.
        losses: of the stages of the latest `fit`; none where nothing is trained step by step.
    """

    name: ClassVar[str]
    minimum_tiles: ClassVar[int]
    head_takes_image: ClassVar[bool] = False
    head_int8: ClassVar[HeadInt8] = HeadInt8.REFIT
    head_keeps_f32: ClassVar[bool] = True
    feature_names: tuple[str, ...]
    feature_axes: ClassVar[FeatureAxes] = FeatureAxes.NCHW
    extractor: nn.Module
    weights_source: str

    def __init__(self, tile_size: Size, config: dict[str, Any]) -> None:
        self.tile_size = tile_size
        self.config = config
        self.device = torch.device("cpu")
        self.losses: tuple[Losses, ...] = ()

    @abstractmethod
    def head_from_state(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A fitted head again, from the ``state_dict()`` of one: sizes that depend on the data are read off it."""

    def check_counts(self, images: int, tiles: int) -> None:
        """Can a head be fitted on ``tiles`` tiles of ``images`` images? `fit` asks, and so does a run before it begins.

        Raises:
            TooFewImagesError: fewer tiles than `minimum_tiles`.
        """
        if tiles < self.minimum_tiles:
            raise TooFewImagesError(
                f"{self.name} needs at least {self.minimum_tiles} training tiles per model, but got {tiles}; "
                "give more images"
            )

    @abstractmethod
    def fit(self, tiles: TileStream, seed: int, progress: Progress = no_progress) -> nn.Module:
        """A head fitted on normal tiles, on the CPU and in evaluation mode.

        Args:
            tiles: the training tiles of one tile model.
            seed: of everything random in fitting: the same seed and tiles give the same head, to the bit on a CPU.
            progress: told of steps after the extraction of features, which `TileStream.on_batch` tells of.

        Raises:
            TooFewImagesError and others of `check_counts`.
            NonFiniteValuesError: NaN or infinity in the features.
        """

    def refit(self, head: nn.Module, tiles: TileStream, seed: int, progress: Progress = no_progress) -> nn.Module:
        """`fit` anew on other features of the very tiles ``head`` was fitted on, such as a quantised extractor's.

        A method that chose among its tiles may keep the choice.
        """
        return self.fit(tiles, seed, progress)

    def adapt(self, head: nn.Module, tiles: TileStream, seed: int) -> nn.Module:
        """A trained ``head`` for other features of its tiles, such as a quantised extractor's: nothing is trained.

        What was measured on the features rather than learnt, such as their range, is measured anew. ``head`` itself
        where there is nothing of the kind.
        """
        return head

    def for_engines(self, head: nn.Module) -> nn.Module:
        """What a bundle holds for a fitted ``head``: the same function of its inputs, in the form engines run best."""
        return head

    def in_int8(self, head: nn.Module) -> nn.Module | None:
        """``head`` with its products in int8, see `edge_ad.methods.parts.eight_bits`; None where it stays as it is.

        Only for engines that multiply matrices in int8.
        """
        return None

    @torch.no_grad()
    @full_float32()
    def extract(self, image: Tensor) -> Sequence[Tensor]:
        """Features of ``image`` uint8 (N, h, w, 3) by the torch extractor, on `device`."""
        features: Sequence[Tensor] = self.extractor(image.to(self.device))
        return features

    def to(self, device: torch.device) -> Self:
        """Extract and fit there from now on. Fitted heads come back on the CPU."""
        self.extractor.to(device)
        self.device = device
        return self


def location_seed(seed: int, location: Location) -> int:
    """The seed a head is fitted with: one per location, whatever was fitted before it."""
    row, col = (index % 2**32 for index in location)  # `WHOLE` has negative ones, which no seed may be
    return int(np.random.SeedSequence((seed, row, col)).generate_state(1)[0])
