"""Training, running and exporting with the extractor over whole images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import BACKBONE, scene, scene_images, tile_setup, tiny_model, tiny_run

import edge_ad
from edge_ad.benchmarks.protocol import BareRun
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, Precision
from edge_ad.errors import GeometryError
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.methods import create_model
from edge_ad.runtime.verify import verify_bundle
from edge_ad.setups import ExtractorScope
from edge_ad.tiling import Location
from edge_ad.training.extractor import extractor_model, held_features
from edge_ad.training.run_detector import run_detector
from edge_ad.training.trainer import train

SETUP = replace(tile_setup((64, 96), (32, 64), (32, 32)), extractor_scope=ExtractorScope.IMAGE)  # 2 x 2, overlapping


def whole_features(run, images):
    """Feature maps of whole images, by a method built for them."""
    settings = run.settings
    whole = create_model(settings.method, SETUP.image_size, weights="none", **settings.config)
    whole.extractor.load_state_dict(run.model().extractor.state_dict())
    return whole.extract(torch.from_numpy(images))


def test_heads_are_fitted_on_windows_of_the_whole_image_s_features(tmp_path):
    run, images = tiny_run(tmp_path / "run", SETUP)
    (embedding,) = whole_features(run, images.fit)
    reduction = SETUP.image_size[0] // embedding.shape[1]
    model = run.model()
    for location in SETUP.grid.locations:
        top, left = (index * 32 // reduction for index in location)
        own = embedding[:, top : top + 32 // reduction, left : left + 64 // reduction]
        mean = run.head(model, location).state_dict()["mean"]
        torch.testing.assert_close(mean, own.double().mean(0).flatten(0, 1).float(), rtol=1e-4, atol=1e-5)
    # Not those of tiles by themselves: near a tile's edge the extractor sees what lies beyond
    (alone,) = model.extract(torch.from_numpy(images.fit[:, :32, :64].copy()))
    assert not torch.allclose(alone, embedding[:, : 32 // reduction, : 64 // reduction], atol=1e-3)


def test_features_of_an_image_are_extracted_once_for_all_tiles():
    images, seen = scene_images(SETUP), []
    model = extractor_model(tiny_model(SETUP.tile_size), SETUP)

    def extract(image):
        seen.append(len(image))
        return model.extract(image)

    features = held_features(SETUP, images.fit, extract, 3, torch.device("cpu"))
    for _ in range(4):
        features([0, 5])
    assert sum(seen) == len(images.fit)


@pytest.mark.parametrize("kind", [(f, p) for f in Format for p in (Precision.FP32, Precision.INT8)], ids="-".join)
@pytest.mark.parametrize("method", ["padim", "stfpm"])  # whose heads take features alone, and the tile as well
def test_a_bundle_computes_what_the_run_computes(tmp_path, kind, method):
    images = scene_images(SETUP)
    torch.manual_seed(1)
    options = {"dimensions": 9} if method == "padim" else {"steps": 4, "batch_size": 4}
    model = create_model(method, SETUP.tile_size, backbone=BACKBONE, weights="none", **options)
    run = train(model, SETUP, images, tmp_path / "run", seed=0)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(*kind, parity_tolerance=0.9))
    assert manifest.setup == SETUP
    probe = scene(2, SETUP.image_size, seed=9)
    with (
        edge_ad.load(tmp_path / "bundle", batch_size=2, precision="f32") as bundle,
        run_detector(run, batch_size=2) as trained,
    ):
        assert all(check.passed for check in verify_bundle(bundle, read_bundle(tmp_path / "bundle")))
        got, wanted = bundle.raw(probe), trained.raw(probe)
        BareRun(bundle, probe)()
    tolerance = 0.25 if kind[1] is Precision.INT8 else 1e-3
    assert np.abs(got.maps - wanted.maps).max() < tolerance * np.ptp(wanted.maps)


def test_tiles_that_do_not_fall_on_positions_are_refused_before_anything_is_written(tmp_path):
    setup = replace(tile_setup((64, 96), (32, 48), (2, 48)), extractor_scope=ExtractorScope.IMAGE)
    with pytest.raises(GeometryError, match="do not fall on the positions of a feature map"):
        train(tiny_model(setup.tile_size), setup, scene_images(setup), tmp_path / "run", seed=0)
    assert not (tmp_path / "run").exists()


def test_one_tile_sees_the_same_in_either_scope(tmp_path):
    setup = tile_setup((32, 48), (32, 48))
    tile, _ = tiny_run(tmp_path / "tile", setup)
    image, _ = tiny_run(tmp_path / "image", replace(setup, extractor_scope=ExtractorScope.IMAGE))
    here = Location(0, 0)
    for run in (tile, image):
        assert run.missing() == ()
    states = [run.head(run.model(), here).state_dict() for run in (tile, image)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)
