"""The extractor once over the whole image, against numpy: windows of its feature maps in place of tiles' own."""

from dataclasses import replace

import numpy as np
import pytest
from fake_session import FakeSession
from tiny_bundle import expected_tile, some_image, tiny_manifest, tiny_setup

from edge_ad.benchmarks.protocol import BareRun
from edge_ad.bundle.manifest import Merge, ScoreMerge
from edge_ad.errors import BundleError, GeometryError
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.feature_windows import FeatureWindows
from edge_ad.runtime.session import TensorSpec
from edge_ad.setups import ExtractorScope, make_setup
from edge_ad.tiling import FeatureAxes, TileGrid

GRID = TileGrid((20, 34), (12, 16), (8, 12))  # padded to (20, 40)


@pytest.mark.parametrize("axes", FeatureAxes)
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_windows_are_those_of_the_tiles(reduction, axes):
    """A map whose values are their own pixel positions shows which part was cut."""
    height, width = (size // reduction for size in GRID.padded_size)
    rows, cols = np.mgrid[:height, :width] * reduction
    last = axes is FeatureAxes.NHWC
    whole = np.stack([rows, cols], axis=-1 if last else 0)[None].astype(np.float32)
    windows = FeatureWindows(GRID, {"features": TensorSpec("features", whole.shape, "float32")}, axes)
    size = 12 // reduction, 16 // reduction
    assert windows.shapes == {"features": (*size, 2) if last else (2, *size)}
    for location in GRID.locations:
        top, left = location.row * 8, location.col * 12
        own = windows.cut({"features": whole}, location)["features"]
        assert own.flags.c_contiguous
        own = own.transpose(0, 3, 1, 2) if last else own
        np.testing.assert_array_equal(own[0, 0, :, 0], np.arange(top, top + 12, reduction))
        np.testing.assert_array_equal(own[0, 1, 0], np.arange(left, left + 16, reduction))


@pytest.mark.parametrize(
    ("positions", "px"),
    [((3, 5), 7), ((5, 4), 10), ((2, 5), 10)],  # 20 rows in 3, 40 columns in 4, 12-px tiles at 10 px a row
)
def test_tiles_between_two_positions_are_refused(positions, px):
    with pytest.raises(GeometryError, match=rf"use multiples of {px} px, or the extractor scope 'tile'"):
        FeatureWindows(GRID, {"features": TensorSpec("features", (1, 2, *positions), "float32")}, FeatureAxes.NCHW)


def whole_detector(setup, batch_size=1):
    manifest = replace(tiny_manifest(setup), merge=Merge(ScoreMerge.MEAN, 2.0, 0.0))
    heads = [FakeSession(setup.tile_size, location, batch_size) for location in setup.model_locations]
    return Detector(manifest, FakeSession(setup.extractor_size, None, batch_size), heads, batch_size=batch_size)


@pytest.mark.parametrize("image_size", [(46, 58), (40, 50)])  # without and with padding
@pytest.mark.parametrize("count", [1, 2])
def test_the_extractor_runs_once_and_heads_see_what_they_saw(image_size, count):
    """tiny_bundle's features are those of single pixels, so that the scope changes nothing."""
    setup = replace(tiny_setup(image_size, (23, 29), (23, 29)), extractor_scope=ExtractorScope.IMAGE)
    detector = whole_detector(setup, batch_size=2)
    images = np.stack([some_image(setup, seed) for seed in range(count)])
    for _ in range(2):  # nothing of the first call is left in the second
        raw = detector.raw(images)
    assert detector.shared.calls == 2
    for image, scores in zip(images, raw.tile_scores, strict=True):
        tiles = zip(setup.grid.locations, setup.grid.crop(image), scores, strict=True)
        for location, tile, score in tiles:
            assert score == pytest.approx(expected_tile(tile, location)[1], rel=1e-5)


def test_the_bare_sessions_see_the_windows_of_the_detector():
    setup = replace(tiny_setup((40, 50), (23, 29), (23, 29)), extractor_scope=ExtractorScope.IMAGE)
    detector, seen = whole_detector(setup), []

    def watched(index, session, run):
        def watch(feeds):
            seen.append((index, {name: np.array(feeds[name]) for name in session.inputs}))
            return run(feeds)

        return watch

    for index, session in enumerate(detector.sessions):
        session.run = watched(index, session, session.run)
    images = some_image(setup)[None]
    detector.raw(images)
    wanted = seen.copy()
    bare = BareRun(detector, images)
    seen.clear()
    bare()
    assert len(wanted) == 1 + len(setup.grid)
    np.testing.assert_equal(seen, wanted)


def test_an_extractor_of_another_size_is_refused():
    setup = replace(tiny_setup(), extractor_scope=ExtractorScope.IMAGE)
    heads = [FakeSession(setup.tile_size, location) for location in setup.model_locations]
    with pytest.raises(BundleError):
        Detector(tiny_manifest(setup), FakeSession(setup.tile_size, None), heads)


@pytest.mark.parametrize("shape", [(1, 64), (1, 46, 58), (1, 1, 46, 58, 1), (1, 0, 46, 58), (1, 1, 45, 58)])
def test_an_extractor_that_gives_no_maps_of_the_tiles_is_refused(shape):
    setup = replace(tiny_setup(), extractor_scope=ExtractorScope.IMAGE)
    heads = [FakeSession(setup.tile_size, location) for location in setup.model_locations]
    shared = FakeSession(setup.extractor_size, None)
    shared.outputs = {"features": TensorSpec("features", shape, "float32")}
    with pytest.raises(BundleError, match="the shared graph: "):
        Detector(tiny_manifest(setup), shared, heads)


def test_setups():
    setup = make_setup("ens9", extractor_scope=ExtractorScope.IMAGE)
    assert (setup.name, setup.extractor_size) == ("ens9", (512, 512))
    assert str(setup) == "ens9 (512x512 image, 9 tiles of 256x256, 9 models, extractor once)"
    assert make_setup("ens9").extractor_size == (256, 256)
    with pytest.raises(GeometryError, match="a global model needs an extractor of the tiles' size"):
        make_setup("ens9+global", extractor_scope=ExtractorScope.IMAGE)
