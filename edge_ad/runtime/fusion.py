"""A global model's verdict beside that of the tiles: whichever is the more alarmed, each measured by its own threshold.

Tiles see small defects, and cannot see that a part is missing or that two parts do not belong together; a model of the
whole image, shrunk to the size of a tile, sees that and no small defect. Values of the two are not comparable as they
are, so each is scaled by held-out normal images first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Fusion
from edge_ad.imaging import resize_map
from edge_ad.runtime.normalisation import rescale


def fuse_scores(tiles: NDArray[np.float32], whole: NDArray[np.float32], fusion: Fusion) -> NDArray[np.float32]:
    """Scores (B,), 0.5 where either part is at its threshold, of merged ``tiles`` (B,) and the global model (B,)."""
    return np.maximum(rescale(tiles, fusion.tiles_score), rescale(whole, fusion.global_score))


def fuse_maps(tiles: NDArray[np.float32], whole: NDArray[np.float32], fusion: Fusion) -> NDArray[np.float32]:
    """Maps (B, H, W) of merged ``tiles`` (B, H, W), which are overwritten, and the global model's (B, h, w)."""
    rescale(tiles, fusion.tiles_map, out=tiles)
    for fused, own in zip(tiles, whole, strict=True):
        enlarged = resize_map(own, (fused.shape[0], fused.shape[1]))
        np.maximum(fused, rescale(enlarged, fusion.global_map), out=fused)
    return tiles
