import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ad.errors import GeometryError, StrideTooLargeError, TileTooLargeError
from edge_ad.tiling import (
    Location,
    MapMerger,
    TileGrid,
    format_size,
    gaussian_matrix,
    parse_size,
)


@st.composite
def grids(draw):
    axes = []
    for _ in range(2):
        tile = draw(st.integers(1, 23))
        axes.append((tile + draw(st.integers(0, 41)), tile, draw(st.integers(1, tile))))
    return TileGrid(*(tuple(axis[i] for axis in axes) for i in range(3)))


def test_the_papers_example_gives_nine_tiles():
    grid = TileGrid((512, 512), (256, 256), (128, 128))
    assert (grid.rows, grid.cols, grid.padded_size) == (3, 3, (512, 512))
    assert grid.window(Location(2, 1)) == (slice(256, 512), slice(128, 384))


def test_four_tiles_without_overlap():
    assert len(TileGrid((512, 512), (256, 256), (256, 256))) == 4


def test_sizes_are_any_two_integers():
    expected = TileGrid((46, 58), (23, 29), (20, 29))
    image = np.zeros((46, 58))
    for kind in (list, np.array, np.uint16):
        grid = TileGrid(kind([46, 58]), kind([23, 29]), kind([20, 29]))
        assert (grid, hash(grid), repr(grid)) == (expected, hash(expected), repr(expected))
        assert [tile.shape for tile in grid.crop(image)] == [(23, 29)] * len(expected)


@pytest.mark.parametrize("size", [(46.0, 58), ("46", "58"), (46,), (46, 58, 3), (0, 58), (46, -1), 46, None])
def test_sizes_that_are_none(size):
    with pytest.raises(GeometryError, match="image_size: expected two positive integers"):
        TileGrid(size, (23, 29), (23, 29))


def test_padding_is_the_smallest_that_fits():
    # rows: 0..29, 20..49, 40..69 cover 61 px after padding to 70; columns: 0..12, 7..19 fit 20 exactly
    grid = TileGrid((61, 20), (30, 13), (20, 7))
    assert (grid.rows, grid.cols, grid.padded_size) == (3, 2, (70, 20))


@given(grids())
@settings(max_examples=60)
def test_every_pixel_is_covered(grid):
    covered = np.zeros(grid.padded_size, bool)
    for location in grid.locations:
        covered[grid.window(location)] = True
    assert covered.all()
    assert all(p >= s for p, s in zip(grid.padded_size, grid.image_size, strict=True))
    assert all(p - s < t for p, s, t in zip(grid.padded_size, grid.image_size, grid.stride, strict=True))


@given(grids(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_merging_the_tiles_of_an_image_gives_the_image(grid, seed):
    image = np.random.default_rng(seed).random(grid.image_size, dtype=np.float32)
    np.testing.assert_allclose(grid.merge(list(grid.crop(image))), image, rtol=1e-5)


@given(grids(), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_merging_does_not_depend_on_the_order_and_matches_a_loop_over_pixels(grid, seed):
    rng = np.random.default_rng(seed)
    maps = rng.random((len(grid), *grid.tile_size), dtype=np.float32)
    total, count = np.zeros(grid.padded_size), np.zeros(grid.padded_size)
    for location, tile_map in zip(grid.locations, maps, strict=True):
        total[grid.window(location)] += tile_map
        count[grid.window(location)] += 1
    height, width = grid.image_size
    merger = MapMerger(grid)
    for index in rng.permutation(len(grid)):
        merger.add(grid.locations[index], maps[index])
    np.testing.assert_allclose(merger.result(), (total / count)[:height, :width], rtol=1e-5)


def test_a_merger_is_reusable_and_takes_batches():
    grid = TileGrid((11, 13), (7, 5), (3, 4))
    rng = np.random.default_rng(0)
    merger = MapMerger(grid, batch_shape=(2,))
    for _ in range(2):
        maps = rng.random((len(grid), 2, 7, 5), dtype=np.float32)
        for location, tile_map in zip(grid.locations, maps, strict=True):
            merger.add(location, tile_map)
        merged = merger.result()
        for item in range(2):
            np.testing.assert_allclose(merged[item], grid.merge(maps[:, item]), rtol=1e-6)


def test_a_missing_tile_is_an_error():
    merger = MapMerger(TileGrid((8, 8), (4, 4), (4, 4)))
    merger.add(Location(0, 0), np.zeros((4, 4), np.float32))
    with pytest.raises(GeometryError, match="no map was added for tile r00_c01, r01_c00, r01_c01"):
        merger.result()


def test_crops_are_views():
    image = np.zeros((512, 512, 3), np.uint8)
    for tile in TileGrid((512, 512), (256, 256), (128, 128)).crop(image):
        assert np.shares_memory(tile, image)


def test_borders_are_both_edges_of_every_tile():
    assert TileGrid((656, 656), (256, 256), (200, 200)).borders(0) == (200, 256, 400, 456)
    assert TileGrid((512, 512), (256, 256), (128, 128)).borders(1) == (128, 256, 384)
    assert TileGrid((64, 64), (64, 64), (64, 64)).borders(0) == ()


def test_seam_bands_are_ten_percent_each_side_and_merge_where_they_meet():
    grid = TileGrid((512, 512), (256, 256), (128, 128))
    assert grid.seam_bands(0) == ((103, 153), (231, 281), (359, 409))
    assert TileGrid((100, 100), (40, 40), (5, 5)).seam_bands(0) == ((1, 99),)


@pytest.mark.parametrize(("size", "sigma"), [(5, 2.0), (17, 0.7), (64, 4.0)])
def test_gaussian_matrix_is_scipys_filter(size, sigma):
    x = np.random.default_rng(0).random(size)
    expected = scipy.ndimage.gaussian_filter1d(x, sigma, mode="reflect", truncate=4.0)
    np.testing.assert_allclose(gaussian_matrix(size, sigma) @ x, expected, atol=1e-12)


def test_errors_name_the_sizes():
    with pytest.raises(StrideTooLargeError, match="stride 65 px exceeds the tile width 64 px"):
        TileGrid((128, 128), (64, 64), (64, 65))
    with pytest.raises(TileTooLargeError, match="image height 100 px is smaller than the tile's 256 px"):
        TileGrid((100, 512), (256, 256), (128, 128))
    with pytest.raises(GeometryError, match="stride: expected two positive integers"):
        TileGrid((128, 128), (64, 64), (0, 64))
    with pytest.raises(GeometryError, match="expected an image of 8x8, but got 9x8"):
        TileGrid((8, 8), (4, 4), (4, 4)).pad(np.zeros((9, 8)))


@pytest.mark.parametrize("text", ["", "x", "12x", "0", "12x0", "1x2x3", "-3", "a"])
def test_bad_sizes(text):
    with pytest.raises(GeometryError, match="expected a size"):
        parse_size(text)


@given(st.tuples(st.integers(1, 9999), st.integers(1, 9999)))
def test_sizes_round_trip(size):
    assert parse_size(format_size(size)) == size
