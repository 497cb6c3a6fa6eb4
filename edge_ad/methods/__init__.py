"""Anomaly detection methods, one per file: each a tile model and how to fit it (PyTorch)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_ad.errors import InputError

if TYPE_CHECKING:
    from edge_ad.methods.tile_model import TileModel
    from edge_ad.tiling import Size

METHODS = {"padim": ("edge_ad.methods.padim", "Padim")}  # name: (module, class)


def create_model(method: str, tile_size: Size, **config: Any) -> TileModel:
    """The tile model of ``method`` for tiles of ``tile_size``, unfitted.

    Raises:
        InputError: unknown method.
        BackboneError, WeightsNotFoundError, WrongWeightsError, NonFiniteWeightsError: see `Backbone`.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    module, name = METHODS[method]
    model: TileModel = getattr(import_module(module), name)(tile_size, **config)
    return model
