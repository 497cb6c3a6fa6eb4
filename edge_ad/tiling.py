"""Where the tiles of an image lie, and how their anomaly maps become one again. numpy only.

Symbols: H, W image height and width; h, w tile height and width; T number of tiles; B batch. Sizes are
``(height, width)``. Tiles are numbered row by row.

Source: Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932, section 3 (eq. 1-3). The tile at (row, col) covers rows ``[s_h * row, s_h * row + h)`` and
columns likewise; where stride and tile do not match the image, it is zero-padded at bottom and right and the padding
is removed after merging. Overlaps are averaged pixel by pixel.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import GeometryError, StrideTooLargeError, TileTooLargeError

Size = tuple[int, int]

SEAM_SIGMA_PX = 2.0
SEAM_BAND = 0.1  # of the tile size, each side of a border
_GAUSSIAN_TRUNCATE = 4.0  # sigmas kept each side, as in scipy.ndimage


class Location(NamedTuple):
    """Row and column of a tile in its grid, counted from the top left."""

    row: int
    col: int

    @property
    def name(self) -> str:
        """File-name form.

        >>> Location(0, 12).name, WHOLE.name
        ('r00_c12', 'whole')
        """
        return "whole" if self == WHOLE else f"r{self.row:02d}_c{self.col:02d}"


WHOLE = Location(-1, -1)  # no tile of a grid: the whole image, shrunk to a tile, as a global model sees it


@dataclass(frozen=True)
class TileGrid:
    """The tile plan of one image size. Immutable; everything derived from it is computed once.

    Args:
        image_size: (H, W) of the images, pixels.
        tile_size: (h, w) of every tile, pixels; at most the image size.
        stride: (rows, columns) from one tile to the next, pixels; at least 1, at most the tile size.

    Raises:
        TileTooLargeError: the image is smaller than a tile.
        StrideTooLargeError: pixels between tiles would be skipped.
        GeometryError: a size is not a pair of positive integers.

    The paper's example, 512-px images in 256-px tiles with stride 128:

    >>> grid = TileGrid((512, 512), (256, 256), (128, 128))
    >>> len(grid), grid
    (9, TileGrid 512x512 in 3x3 tiles of 256x256, stride 128x128, no padding)
    """

    image_size: Size
    tile_size: Size
    stride: Size

    def __post_init__(self) -> None:
        for name in ("image_size", "tile_size", "stride"):
            object.__setattr__(self, name, _checked_size(name, getattr(self, name)))
        for image_px, tile_px, stride_px, axis in zip(
            self.image_size, self.tile_size, self.stride, ("height", "width"), strict=True
        ):
            if tile_px > image_px:
                raise TileTooLargeError(
                    f"image {axis} {image_px} px is smaller than the tile's {tile_px} px; "
                    "use a smaller tile or a larger image size"
                )
            if stride_px > tile_px:
                raise StrideTooLargeError(
                    f"stride {stride_px} px exceeds the tile {axis} {tile_px} px and would skip pixels; "
                    f"use a stride of at most {tile_px}"
                )

    def __repr__(self) -> str:
        padding = "no padding" if self.padded_size == self.image_size else f"padded to {format_size(self.padded_size)}"
        return (
            f"TileGrid {format_size(self.image_size)} in {self.rows}x{self.cols} tiles of "
            f"{format_size(self.tile_size)}, stride {format_size(self.stride)}, {padding}"
        )

    @cached_property
    def rows(self) -> int:
        """Number of tile rows (eq. 2, on the padded image)."""
        return _tiles_along(self.image_size[0], self.tile_size[0], self.stride[0])

    @cached_property
    def cols(self) -> int:
        """Number of tile columns (eq. 2, on the padded image)."""
        return _tiles_along(self.image_size[1], self.tile_size[1], self.stride[1])

    @cached_property
    def padded_size(self) -> Size:
        """(H', W') after zero-padding at bottom and right: the smallest size >= (H, W) that the tiles fill."""
        return (
            (self.rows - 1) * self.stride[0] + self.tile_size[0],
            (self.cols - 1) * self.stride[1] + self.tile_size[1],
        )

    @cached_property
    def locations(self) -> tuple[Location, ...]:
        """All tile locations, row by row."""
        return tuple(Location(row, col) for row in range(self.rows) for col in range(self.cols))

    def __len__(self) -> int:
        return self.rows * self.cols

    def window(self, location: Location) -> tuple[slice, slice]:
        """(rows, columns) of one tile in the padded image (eq. 1).

        >>> TileGrid((512, 512), (256, 256), (128, 128)).window(Location(0, 1))
        (slice(0, 256, None), slice(128, 384, None))

        Raises:
            GeometryError: no such tile.
        """
        row, col = location
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise GeometryError(f"no tile {tuple(location)} in a grid of {self.rows}x{self.cols}")
        top, left = row * self.stride[0], col * self.stride[1]
        return slice(top, top + self.tile_size[0]), slice(left, left + self.tile_size[1])

    def covering(self, row: int, col: int) -> tuple[Location, ...]:
        """The tiles that cover one pixel.

        >>> TileGrid((512, 512), (256, 256), (256, 256)).covering(0, 300)
        (Location(row=0, col=1),)
        """
        return tuple(
            location
            for location in self.locations
            for rows, cols in [self.window(location)]
            if rows.start <= row < rows.stop and cols.start <= col < cols.stop
        )

    def window_on(self, location: Location, positions: Size) -> tuple[slice, slice]:
        """Rows and columns of a tile on a map of ``positions`` (rows, columns) over the whole padded image.

        >>> TileGrid((512, 512), (256, 256), (128, 128)).window_on(Location(0, 2), (32, 32))
        (slice(0, 16, None), slice(16, 32, None))

        Raises:
            GeometryError: the tile does not begin and end between two positions.
        """
        slices = []
        for padded_px, tile_px, stride_px, count, index in zip(
            self.padded_size, self.tile_size, self.stride, positions, location, strict=True
        ):
            reduction = padded_px // count
            if padded_px % count or tile_px % reduction or (stride_px % reduction and index):
                raise GeometryError(
                    f"tiles of {tile_px} px every {stride_px} px do not fall on the positions of a feature map, which "
                    f"has {count} for {padded_px} px: use multiples of {-(-padded_px // count)} px, or the extractor "
                    "scope 'tile'"
                )
            start = index * stride_px // reduction
            slices.append(slice(start, start + tile_px // reduction))
        rows, cols = slices
        return rows, cols

    def pad(self, image: NDArray[Any]) -> NDArray[Any]:
        """Zero-pad ``image`` (H, W) or (H, W, C) to `padded_size`; the same array where nothing is missing.

        For users, benchmarks and tests, as `crop`. Raises `GeometryError` for another size than `image_size`.
        """
        if image.shape[:2] != self.image_size:
            raise GeometryError(
                f"expected an image of {format_size(self.image_size)}, but got {format_size(image.shape[:2])}"
            )
        if self.padded_size == self.image_size:
            return image
        bottom, right = (padded - size for padded, size in zip(self.padded_size, self.image_size, strict=True))
        return np.pad(image, [(0, bottom), (0, right)] + [(0, 0)] * (image.ndim - 2))

    def crop(self, image: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The tiles of ``image`` (H, W) or (H, W, C), row by row: views into it (or into its padded copy).

        With `merge` what tiling means, in plain numpy, for users, benchmarks and tests. `Detector` itself cuts tile by
        tile into one buffer, and never pads the image for it. Raises `GeometryError` as `pad`.
        """
        padded = self.pad(image)
        for location in self.locations:
            yield padded[self.window(location)]

    def merge(self, maps: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[np.float32]:
        """Average tile maps, T of (..., h, w) in grid order, into one (..., H, W) float32 map, without smoothing.

        For users and tests, as `crop`: `Detector` adds each map to its `MapMerger` as it comes.

        Raises:
            GeometryError: not a map per tile.
        """
        if len(maps) != len(self):
            raise GeometryError(f"expected {len(self)} tile maps, but got {len(maps)}")
        merger = MapMerger(self, batch_shape=np.shape(maps[0])[:-2])
        for location, tile_map in zip(self.locations, maps, strict=True):
            merger.add(location, tile_map)
        return merger.result()

    def borders(self, axis: int) -> tuple[int, ...]:
        """Positions of the inner tile borders along ``axis`` (0: rows, 1: columns), ascending, inside the image.

        Both edges of every tile count. Strips at multiples of the stride alone would miss the far edges of tiles
        whose size is no multiple of the stride.

        >>> TileGrid((656, 656), (256, 256), (200, 200)).borders(0)
        (200, 256, 400, 456)
        """
        count = (self.rows, self.cols)[axis]
        starts = {index * self.stride[axis] for index in range(count)}
        ends = {start + self.tile_size[axis] for start in starts}
        return tuple(sorted(border for border in starts | ends if 0 < border < self.image_size[axis]))

    def seam_bands(self, axis: int, band: float = SEAM_BAND) -> tuple[tuple[int, int], ...]:
        """Intervals [start, stop) of pixels within ``band`` x tile size of an inner border, merged and ascending."""
        reach = int(band * self.tile_size[axis])
        bands: list[tuple[int, int]] = []
        for border in self.borders(axis):
            start, stop = max(0, border - reach), min(self.image_size[axis], border + reach)
            if start >= stop:
                continue
            if bands and start <= bands[-1][1]:
                bands[-1] = (bands[-1][0], stop)
            else:
                bands.append((start, stop))
        return tuple(bands)


class FeatureAxes(StrEnum):
    """Order of the axes of an extractor's feature maps: batch, channels, height, width."""

    NCHW = "NCHW"
    NHWC = "NHWC"

    def positions(self, shape: Sequence[int]) -> Size:
        """(h', w') of a map of this ``shape``.

        >>> FeatureAxes.NHWC.positions((1, 64, 48, 100))
        (64, 48)
        """
        return shape[self.index("H")], shape[self.index("W")]

    def window(self, rows: slice, cols: slice, *, of_one: bool = False) -> tuple[slice, ...]:
        """The index of a part of a map, or of one image's map without the batch axis.

        >>> FeatureAxes.NCHW.window(slice(0, 2), slice(1, 3), of_one=True)
        (slice(None, None, None), slice(0, 2, None), slice(1, 3, None))
        """
        by_axis = {"H": rows, "W": cols}
        return tuple(by_axis.get(axis, slice(None)) for axis in self[of_one:])


class MapMerger:
    """Adds tile maps up as they come and gives back their average: one accumulator, no list of maps.

    Args:
        grid: the tile plan.
        batch_shape: leading axes of every map, ``()`` for one image, ``(B,)`` for a batch.
        skipped: tiles whose maps will not come: they count as 0 in the average.
    """

    def __init__(
        self, grid: TileGrid, batch_shape: tuple[int, ...] = (), skipped: Collection[tuple[int, int]] = ()
    ) -> None:
        self.grid = grid
        self._total = np.zeros((*batch_shape, *grid.padded_size), np.float32)
        self._inside = self._total[..., : grid.image_size[0], : grid.image_size[1]]
        weight = _reciprocal_coverage(grid)
        self._weight = weight if (weight != 1).any() else None  # None: nothing overlaps
        self._expected = np.array([location not in skipped for location in grid.locations])
        self._touched = np.zeros(len(grid), bool)

    def add(self, location: Location, tile_map: NDArray[Any]) -> None:
        """Add the map (..., h, w) of one tile. The first tile since the last `result` starts a new image."""
        window = self._total[..., *self.grid.window(location)]
        if self._weight is None:
            window[...] = tile_map
        else:
            if not self._touched.any():
                self._total.fill(0)
            window += tile_map
        self._touched[location.row * self.grid.cols + location.col] = True

    def result(self) -> NDArray[np.float32]:
        """The averaged map (..., H, W), float32, a new array.

        Raises:
            GeometryError: a tile is missing.
        """
        missing = [self.grid.locations[i].name for i in np.flatnonzero(self._expected & ~self._touched)]
        if missing:
            raise GeometryError(f"no map was added for tile {', '.join(missing)}")
        self._touched[:] = False
        return self._inside.copy() if self._weight is None else self._inside * self._weight


def gaussian_radius(sigma_px: float) -> int:
    """Taps each side of the centre, as in scipy.ndimage with truncate=4.

    >>> gaussian_radius(2.0), gaussian_radius(4.0)
    (8, 16)
    """
    return int(_GAUSSIAN_TRUNCATE * sigma_px + 0.5)


def gaussian_matrix(size: int, sigma_px: float) -> NDArray[np.float64]:
    """(size, size) matrix of a 1-D Gaussian blur with mirrored ends ("reflect": the edge pixel is repeated).

    ``gaussian_matrix(n, s) @ x`` equals ``scipy.ndimage.gaussian_filter1d(x, s, mode="reflect")``.
    """
    radius = gaussian_radius(sigma_px)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel /= kernel.sum()
    rows = np.arange(size)[:, None]
    cols = (rows + offsets) % (2 * size)  # reflection has period 2 * size: d c b a | a b c d | d c b a
    cols = np.where(cols >= size, 2 * size - 1 - cols, cols)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.broadcast_to(rows, cols.shape), cols), np.broadcast_to(kernel, cols.shape))
    return matrix


def parse_size(text: str) -> Size:
    """Read ``"HxW"`` or one number for a square.

    >>> parse_size("512x640"), parse_size("256")
    ((512, 640), (256, 256))
    """
    parts = text.lower().split("x")
    if not all(part.strip().isdecimal() for part in parts) or len(parts) not in (1, 2):
        raise GeometryError(f"expected a size such as 512 or 512x640 (height x width), but got {text!r}")
    height, width = int(parts[0]), int(parts[-1])
    if height < 1 or width < 1:
        raise GeometryError(f"expected a size of at least 1x1, but got {text!r}")
    return height, width


def format_size(size: Sequence[int]) -> str:
    """The inverse of `parse_size`: ``"512x640"``."""
    return "x".join(str(int(n)) for n in size)


def _checked_size(name: str, size: Any) -> Size:
    """``size``, any two integers, as a tuple of Python's: numpy's, and lists, do not compare like one."""
    try:
        height, width = (operator.index(n) for n in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise GeometryError(f"{name}: expected two positive integers (height, width), but got {size!r}")
    return height, width


def _tiles_along(image_px: int, tile_px: int, stride_px: int) -> int:
    return -(-(image_px - tile_px) // stride_px) + 1


def _reciprocal_coverage(grid: TileGrid) -> NDArray[np.float32]:
    """1 / number of tiles that cover each pixel, (H, W) float32; separable because the grid is."""
    counts = []
    for axis, size in enumerate(grid.padded_size):
        count = np.zeros(size, np.int64)
        for index in range((grid.rows, grid.cols)[axis]):
            start = index * grid.stride[axis]
            count[start : start + grid.tile_size[axis]] += 1
        counts.append(count[: grid.image_size[axis]])
    return (1.0 / np.outer(*counts)).astype(np.float32)
