from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

import edge_ad
from edge_ad.runtime.seams import SeamSmoother
from edge_ad.tiling import TileGrid

PACKAGE = Path(edge_ad.__file__).parent
PRODUCTS = {"dot", "matmul", "einsum", "tensordot"}
PER_FRAME = [PACKAGE / "tiling.py", *sorted((PACKAGE / "runtime").glob("*.py"))]


@pytest.mark.parametrize(
    "grid",
    [
        TileGrid((512, 512), (256, 256), (128, 128)),
        TileGrid((331, 463), (101, 127), (67, 127)),
        TileGrid((29, 31), (17, 13), (11, 7)),  # bands of one pixel
        TileGrid((7, 640), (7, 100), (7, 90)),  # rows are narrower than the Gaussian
    ],
    ids=str,
)
def test_seams_are_scipys_gaussian_inside_the_bands_and_untouched_elsewhere(grid):
    anomaly_map = np.random.default_rng(0).random((2, *grid.image_size), dtype=np.float32)
    band = np.zeros(grid.image_size, bool)
    for start, stop in grid.seam_bands(0):
        band[start:stop] = True
    for start, stop in grid.seam_bands(1):
        band[:, start:stop] = True
    blurred = np.stack([scipy.ndimage.gaussian_filter(m.astype(np.float64), 2.0, truncate=4.0) for m in anomaly_map])
    expected = np.where(band, blurred, anomaly_map)
    # float32 sums of 17 x 17 positive terms below 1: 1e-6
    np.testing.assert_allclose(SeamSmoother(grid)(anomaly_map.copy()), expected, atol=1e-6)


def test_one_map_is_smoothed_as_a_batch_is():
    grid = TileGrid((64, 96), (32, 32), (32, 32))
    maps = np.random.default_rng(0).random((2, 64, 96), dtype=np.float32)
    one = maps[1].copy()
    assert SeamSmoother(grid)(one) is one
    np.testing.assert_array_equal(one, SeamSmoother(grid)(maps)[1])


@pytest.mark.parametrize("path", PER_FRAME, ids=lambda path: path.name)
def test_nothing_that_runs_per_frame_calls_blas(path):
    """Its threads spin after each product and slow the inference that follows; see edge_ad/runtime/seams.py."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.MatMult)
        assert not (isinstance(node, ast.Attribute) and node.attr in PRODUCTS)
