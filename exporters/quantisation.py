"""INT8 post-training quantisation of the shared extractor with NNCF.

Only the extractor is quantised. Heads hold distances, normalisation and maps, which lose their ranking in eight bits;
they stay in float and are refitted on the quantised extractor's features, so that both sides of a distance carry the
same rounding.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Format
from edge_ad.methods.tile_model import TileStream

CALIBRATION_TILES = 300  # NNCF's own default

Model = TypeVar("Model")  # openvino.Model or onnx.ModelProto


def calibration_tiles(stream: TileStream, count: int = CALIBRATION_TILES) -> NDArray[np.uint8]:
    """Up to ``count`` tiles (n, h, w, 3), drawn evenly over all images and locations of ``stream``."""
    wanted = np.unique(np.linspace(0, len(stream) - 1, min(count, len(stream))).astype(int))
    chosen, start = [], 0
    for tiles in stream.tiles():
        inside = wanted[(wanted >= start) & (wanted < start + len(tiles))] - start
        chosen.append(tiles[inside])
        start += len(tiles)
    return np.concatenate(chosen)


def quantise(model: Model, tiles: NDArray[np.uint8], graph_format: Format, input_name: str = "image") -> Model:
    """``model`` with int8 convolutions; weights per channel, activations per tensor, both symmetric.

    Args:
        model: the extractor as openvino.Model or onnx.ModelProto.
        tiles: calibration tiles uint8 (n, h, w, 3).
        graph_format: of ``model``.
        input_name: of the image input.
    """
    with _quiet():
        import nncf

        quantised: Model = nncf.quantize(
            model,
            nncf.Dataset(list(tiles), lambda tile: {input_name: tile[None]}),
            subset_size=len(tiles),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            # The exact correction keeps more of the ranking; NNCF's ONNX backend cannot cut every graph as it needs
            fast_bias_correction=graph_format is Format.ONNX,
        )
    return quantised


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF logs and draws progress bars of its own on stdout, which belongs to the data."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger = logging.getLogger("nncf")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
