"""The image that a benchmark feeds a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad.bundle.manifest import Manifest
from edge_ad.imaging import read_image, resize


def benchmark_frame(bundle: Path, manifest: Manifest) -> tuple[NDArray[np.uint8], str]:
    """The image to feed, uint8 (H, W, 3), and what it is: the time of some graphs depends on the values."""
    size = manifest.setup.image_size
    for golden in manifest.golden:
        if golden.label == "normal":
            return resize(read_image(bundle / golden.file.path), size), "the bundle's normal golden image"
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return noise, "uniform noise, seed 0 (the bundle has no normal golden image)"
