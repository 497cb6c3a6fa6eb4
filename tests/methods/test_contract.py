"""What every method must keep: one suite for all of them, from fitting to the exported bundle.

A dozen images. A new method adds its name to `PARAMETERS` of tiny_methods.py.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import PARAMETERS, planted, scores_of, tiny
from tiny_run import scene, scene_images, tile_setup

import edge_ad
from edge_ad.bundle.manifest import Format, Precision
from edge_ad.errors import NonFiniteValuesError, TooFewImagesError
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.methods import METHODS
from edge_ad.methods.tile_model import TileStream
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.setups import Sharing
from edge_ad.tiling import Location
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder, load_tensors
from edge_ad.training.trainer import EnsembleTrainer, train

SETUPS = {
    "sm": tile_setup((64, 48), (64, 48), sharing=Sharing.ALL),
    "st": tile_setup((64, 96), (64, 48), (64, 24), Sharing.ALL),
    "ens": tile_setup((64, 96), (64, 48)),
}

each_method = pytest.mark.parametrize("method", PARAMETERS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs by method and setup, each trained once."""

    @cache
    def run(method: str, setup: str) -> RunFolder:
        torch.manual_seed(123)  # whatever the state of torch's generator
        folder = tmp_path_factory.mktemp(f"{method}-{setup}") / "run"
        return train(tiny(method), SETUPS[setup], pictures(setup), folder, seed=5)

    return run


def pictures(setup: str) -> Any:
    return scene_images(SETUPS[setup], fit=12)


def test_the_suite_covers_every_method() -> None:
    assert set(PARAMETERS) == set(METHODS)


@each_method
@pytest.mark.parametrize("setup", SETUPS)
def test_a_defect_scores_higher_than_any_normal_image(trained: Any, method: str, setup: str) -> None:
    run = trained(method, setup)
    normal, defective = planted(SETUPS[setup])
    with run_detector(run) as detector:
        result = detector.raw(defective[:1])
        assert scores_of(detector, normal).max() < scores_of(detector, defective).min()
    assert result.maps.shape == (1, *SETUPS[setup].image_size)
    row, col = np.unravel_index(result.maps[0].argmax(), result.maps[0].shape)
    assert 12 <= row < 40  # the scratch and a few pixels of blur around it
    assert 6 <= col < 38


@each_method
def test_a_head_comes_back_as_it_was_fitted(trained: Any, method: str) -> None:
    run = trained(method, "ens")
    torch.manual_seed(321)
    model, location, images = run.model(), Location(0, 1), pictures("ens")
    before = {key: value.clone() for key, value in model.extractor.state_dict().items()}
    fitted = EnsembleTrainer(run, model, images).fit(location)
    assert all(torch.equal(value, before[key]) for key, value in model.extractor.state_dict().items())
    probe = next(iter(TileStream(
        images.held_out, SETUPS["ens"].grid, (location,), model.extract, with_image=model.head_takes_image
    )))  # fmt: skip
    with torch.no_grad():
        for stored, fresh in zip(run.head(model, location)(*probe), fitted(*probe), strict=True):
            assert torch.equal(stored, fresh)


@each_method
def test_a_resumed_run_equals_an_uninterrupted_one(trained: Any, method: str, tmp_path: Path) -> None:
    whole = trained(method, "ens")
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "normalisation.json").unlink()
    whole_head = whole.head_path(Location(0, 1))
    (tmp_path / "run" / "tile_models" / whole_head.name).unlink()
    torch.manual_seed(77)
    resumed = train(tiny(method), SETUPS["ens"], pictures("ens"), tmp_path / "run", seed=5)
    expected, actual = load_tensors(whole_head), load_tensors(resumed.head_path(Location(0, 1)))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert resumed.normalisation() == whole.normalisation()


@each_method
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("graph_format", Format)
def test_the_bundle_does_what_was_trained(
    trained: Any, method: str, graph_format: Format, precision: Precision, tmp_path: Path
) -> None:
    setup = {Format.OPENVINO: "ens", Format.ONNX: "st"}[graph_format]  # each with each would take twice the time
    run = trained(method, setup)
    manifest = export_run(run, pictures(setup), tmp_path / "bundle", ExportOptions(graph_format, precision))
    assert manifest.parity  # within the tolerances of edge_ad.exporters.parity, or there were no bundle
    normal, defective = planted(SETUPS[setup], 8)
    images = np.concatenate([normal, defective])
    with edge_ad.load(tmp_path / "bundle", precision=ExecutionPrecision.F32) as one:
        single = [one.raw(image[None]) for image in images]
        scores, maps = np.array([r.scores[0] for r in single]), np.array([r.maps[0] for r in single])
    with edge_ad.load(tmp_path / "bundle", precision=ExecutionPrecision.F32, batch_size=16) as many:
        batch = many.raw(images)
    assert scores[:8].max() < scores[8:].min()
    # Engines choose other kernels for other batch sizes: sums in another order, in int8 other roundings beside. ONNX in
    # fp16 computes in half precision, whose numbers lie 1e-3 of themselves apart
    relative = 2e-2 if precision is Precision.INT8 else 1e-4
    if (graph_format, precision) == (Format.ONNX, Precision.FP16):
        relative = 1e-3
    tolerance = relative * np.ptp(maps)
    np.testing.assert_allclose(batch.maps, maps, atol=tolerance)
    np.testing.assert_allclose(batch.scores, scores, atol=tolerance)


@each_method
def test_too_few_images_are_refused_before_anything_is_written(method: str, tmp_path: Path) -> None:
    model = tiny(method)
    images = scene_images(SETUPS["sm"], fit=model.minimum_tiles - 1)
    with pytest.raises(TooFewImagesError, match=rf"{method} needs at least \d+ training"):
        train(model, SETUPS["sm"], images, tmp_path / "run", seed=0)
    assert not (tmp_path / "run").exists()


@each_method
def test_features_that_are_no_numbers_are_refused(method: str) -> None:
    model = tiny(method)

    def broken(image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.full_like(feature, torch.nan) for feature in model.extract(image)]

    setup = SETUPS["ens"]
    images = scene(12, setup.image_size)
    tiles = TileStream(images, setup.grid, (Location(0, 0),), broken, with_image=model.head_takes_image)
    with pytest.raises(NonFiniteValuesError, match="NaN or infinite; check the weights"):
        model.fit(tiles, seed=0)
