"""What a run's extractor is shown, tiles or whole images, and the features of whole images for heads to read from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edge_ad.methods import create_model
from edge_ad.methods.head_inputs import HeadInputs
from edge_ad.methods.parts.weights import fill
from edge_ad.methods.tile_model import Extract, ImageFeatures, TileModel, TileStream
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.setups import ExtractorScope, Setup
from edge_ad.tiling import Location, TileGrid
from edge_ad.training.torch_graph import shared_graph


def extractor_model(model: TileModel, setup: Setup) -> TileModel:
    """The method whose extractor takes what ``setup`` shows it: ``model``, or the same one built for whole images.

    Raises:
        GeometryError: tiles do not fall on the positions of its feature maps.
    """
    if setup.extractor_scope is ExtractorScope.TILE:
        return model
    whole = create_model(model.name, setup.extractor_size, weights="none", **model.config)
    fill(whole.extractor, model.extractor.state_dict(), "the extractor")
    FeatureWindows(setup.grid, {spec.name: spec for spec in shared_graph(whole).outputs}, whole.feature_axes)
    return whole.to(model.device)


def extractor_stream(setup: Setup, images: NDArray[np.uint8], extract: Extract, batch_size: int) -> TileStream:
    """Everything that the extractor is shown of ``images`` (n, H, W, 3): their tiles, or the padded images."""
    if setup.extractor_scope is ExtractorScope.TILE:
        return TileStream(images, setup.grid, setup.locations, extract, batch_size)
    size = setup.extractor_size
    return TileStream(images, TileGrid(size, size, size), (Location(0, 0),), extract, batch_size)


def held_features(
    setup: Setup, images: NDArray[np.uint8], extract: Extract, batch_size: int, device: torch.device
) -> ImageFeatures | None:
    """Features of whole images by number, extracted once while they fit in memory; None where tiles are extracted."""
    if setup.extractor_scope is ExtractorScope.TILE:
        return None
    return HeadInputs(extractor_stream(setup, images, extract, batch_size), device).__getitem__
