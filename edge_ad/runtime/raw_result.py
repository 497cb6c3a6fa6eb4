"""What the tiles of a batch give together, before it is scaled and judged.

Symbols: B batch, H, W image size, h, w tile size, T tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RawResult:
    """Merged outputs of a batch, before they are scaled to [0, 1]. It owns its arrays.

    Attributes:
        scores: (B,) float32 image scores.
        maps: (B, H, W) float32 merged maps, seams smoothed.
        tile_scores: (B, T) float32 as the tile models gave them, in grid order; NaN where a region of interest leaves
            nothing of a tile, and it was not run.
        timings_ms: milliseconds: wait (for other threads), tiles (crops), infer, merge, seams, fuse, roi, total.
        global_scores, global_maps: (B,) and (B, h, w) float32 as the global model gave them, where there is one.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    tile_scores: NDArray[np.float32]
    timings_ms: Mapping[str, float]
    global_scores: NDArray[np.float32] | None = None
    global_maps: NDArray[np.float32] | None = None
