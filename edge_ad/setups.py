"""Setups: how an image is cut into tiles, whether the tiles share one model, and whether another sees the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from edge_ad.errors import GeometryError, InputError
from edge_ad.tiling import WHOLE, Location, Size, TileGrid, format_size


class Sharing(StrEnum):
    """Who shares a tile model."""

    LOCATION = "location"  # one model per tile location: an ensemble
    ALL = "all"  # one model for all locations


class ExtractorScope(StrEnum):
    """What the frozen extractor is shown."""

    TILE = "tile"  # every tile by itself, as in arXiv 2403.04932: overlapping pixels several times
    IMAGE = "image"  # the whole image once; heads read their windows of the feature maps


@dataclass(frozen=True)
class Setup:
    """How an image is cut and whether models are shared.

    Args:
        name: one of `SETUPS`, or ``"custom"``.
        image_size, tile_size, stride: (height, width), pixels.
        sharing: one model per location, or one for all.
        global_model: one more model, of the whole image shrunk to a tile: tiles cannot see that a part is missing.
        extractor_scope: what the extractor is shown. With ``"image"`` features at a tile's edge know what lies beyond
            it, and where tiles overlap the extractor does its work once.
        blank_tiles: (row, col) of tiles that a region of interest leaves nothing of: no model, and not run.
    """

    name: str
    image_size: Size
    tile_size: Size
    stride: Size
    sharing: Sharing
    global_model: bool = False
    extractor_scope: ExtractorScope = ExtractorScope.TILE
    blank_tiles: tuple[tuple[int, int], ...] = ()

    @property
    def grid(self) -> TileGrid:
        """The tile plan. Raises `GeometryError` where the sizes make none."""
        return TileGrid(self.image_size, self.tile_size, self.stride)

    @property
    def extractor_size(self) -> Size:
        """(height, width) the extractor is built for: of a tile, or of the padded image."""
        return self.tile_size if self.extractor_scope is ExtractorScope.TILE else self.grid.padded_size

    @property
    def model_locations(self) -> tuple[Location, ...]:
        """Locations that have a model of their own, `WHOLE` the last; ``Location(0, 0)`` where one serves all tiles.

        Raises:
            GeometryError: a global model beside a single tile, which sees the whole image already.
        """
        tiles = self.tiles if self.sharing is Sharing.LOCATION else (Location(0, 0),)
        return (*tiles, *self._whole)

    @property
    def locations(self) -> tuple[Location, ...]:
        """All that is inspected of an image: tiles that are not blank, and `WHOLE` where there is a global model."""
        return (*self.tiles, *self._whole)

    def model_of(self, location: Location) -> Location:
        """The location whose model serves ``location``."""
        return location if self.sharing is Sharing.LOCATION or location == WHOLE else Location(0, 0)

    def tiles_of(self, model: Location) -> tuple[Location, ...]:
        """The locations that the model of ``model`` serves, and trains on."""
        return (model,) if self.sharing is Sharing.LOCATION or model == WHOLE else self.tiles

    @property
    def tiles(self) -> tuple[Location, ...]:
        """The grid's locations that are not blank."""
        return tuple(location for location in self.grid.locations if location not in self.blank_tiles)

    @property
    def _whole(self) -> tuple[Location, ...]:
        if self.global_model and len(self.grid) == 1:
            raise GeometryError("a global model beside one tile would see the same: leave one of them out")
        if self.global_model and self.extractor_scope is ExtractorScope.IMAGE:
            raise GeometryError("a global model needs an extractor of the tiles' size: extractor scope 'tile'")
        return (WHOLE,) if self.global_model else ()

    def __str__(self) -> str:
        once = ", extractor once" if self.extractor_scope is ExtractorScope.IMAGE else ""
        blank = f", {len(self.blank_tiles)} of them blank" if self.blank_tiles else ""
        return (
            f"{self.name} ({format_size(self.image_size)} image, {len(self.grid)} tiles of "
            f"{format_size(self.tile_size)}{blank}, {len(self.model_locations)} models{once})"
        )


def _setup(name: str, image_px: int, tile_px: int, stride_px: int, sharing: Sharing) -> Setup:
    return Setup(name, (image_px, image_px), (tile_px, tile_px), (stride_px, stride_px), sharing)


# arXiv 2403.04932, section 4: single model, shared tiles, ensemble; with tiles, also beside a global model
_PAPER = (
    _setup("sm256", 256, 256, 256, Sharing.ALL),
    _setup("sm512", 512, 512, 512, Sharing.ALL),
    _setup("st4", 512, 256, 256, Sharing.ALL),
    _setup("st9", 512, 256, 128, Sharing.ALL),
    _setup("ens4", 512, 256, 256, Sharing.LOCATION),
    _setup("ens9", 512, 256, 128, Sharing.LOCATION),
)
_WITH_GLOBAL = [
    replace(setup, name=f"{setup.name}+global", global_model=True) for setup in _PAPER if len(setup.grid) > 1
]
SETUPS = {setup.name: setup for setup in (*_PAPER, *_WITH_GLOBAL)}


def make_setup(
    name: str = "ens9",
    *,
    image_size: Size | None = None,
    tile_size: Size | None = None,
    stride: Size | None = None,
    sharing: Sharing | None = None,
    global_model: bool | None = None,
    extractor_scope: ExtractorScope = ExtractorScope.TILE,
) -> Setup:
    """A named setup, or one with parts of it replaced (then named ``"custom"``).

    A new tile size without a stride sets the stride to the tile size: no overlap.

    >>> make_setup("ens9").grid.rows
    3
    >>> print(make_setup("ens9", image_size=(512, 1024), tile_size=(256, 512)))
    custom (512x1024 image, 4 tiles of 256x512, 4 models)
    >>> print(make_setup("ens9", global_model=True))
    ens9+global (512x512 image, 9 tiles of 256x256, 10 models)

    Raises:
        InputError: unknown name.
        GeometryError: the sizes make no grid, or one tile only, beside a global model or with a stride.
    """
    if name not in SETUPS:
        raise InputError(f"unknown setup {name!r}; known: {', '.join(SETUPS)}")
    named = SETUPS[name]
    changes = {
        "image_size": image_size,
        "tile_size": tile_size,
        "stride": stride if stride is not None else tile_size,
        "sharing": sharing,
        "global_model": global_model,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if image_size is not None and named.tile_size == named.image_size and tile_size is None:
        given |= {"tile_size": image_size, "stride": image_size}  # a single model stays one
    setup = replace(named, **given)  # type: ignore[arg-type]
    if stride is not None and len(setup.grid) == 1:
        raise GeometryError(
            f"{format_size(setup.image_size)} has one tile, which has no stride; give a smaller tile size, or leave "
            "the stride out"
        )
    replace(setup, extractor_scope=extractor_scope).model_locations  # noqa: B018 - raises where they make no grid
    known = (other for other in SETUPS.values() if replace(setup, name=other.name) == other)
    found = next(known, replace(setup, name="custom"))
    return found if extractor_scope is ExtractorScope.TILE else replace(found, extractor_scope=extractor_scope)
