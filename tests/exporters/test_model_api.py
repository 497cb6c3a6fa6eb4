"""One tile for Intel's ModelAPI: the merged graph against numpy, its metadata, and ModelAPI itself opening it."""

from dataclasses import replace

import cv2
import numpy as np
import openvino as ov
import pytest
from file_system import file_size_limit
from tiny_bundle import expected_tile, some_image, tiny_manifest, tiny_setup

from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, Normalisation, NormalisationStage, Scale
from edge_ad.errors import InputError, OutputExistsError, OutputWriteError
from edge_ad.exporters.model_api import MODEL_INFO, write_tile
from edge_ad.setups import ExtractorScope, Sharing
from edge_ad.tiling import Location

TILE_SCORE = tuple(Scale(0.1 * n, 1.0 + 0.2 * n) for n in range(4))
TILE_MAP = tuple(Scale(0.05 * n, 0.5 + 0.1 * n) for n in range(4))
BY_TILE = Normalisation(NormalisationStage.TILE, "fixed", Scale(0.2, 1.2), Scale(0.1, 0.9), TILE_SCORE, TILE_MAP)
WHERE = Location(1, 0)


@pytest.fixture
def bundle(tiny_bundle):
    """Four tiles, heads that take features and image, thresholds per tile."""
    return read_bundle(tiny_bundle(tiny_manifest(normalisation=BY_TILE)))


def some_tile(bundle):
    crops = list(bundle.manifest.setup.grid.crop(some_image(bundle.manifest.setup)))
    return np.ascontiguousarray(crops[2])


def expected(tile, model=WHERE):
    """(map, score) in [0, 1] of the tile at `WHERE`, the third, by the head of ``model``, in float64."""
    raw_map, raw_score = expected_tile(tile, model)
    scaled = (
        0.5 * (raw - s.low) / (s.threshold - s.low) for raw, s in ((raw_map, TILE_MAP[2]), (raw_score, TILE_SCORE[2]))
    )
    return tuple(np.clip(values, 0, 1) for values in scaled)


def test_image_to_verdict_in_one_graph(bundle, tmp_path):
    path = write_tile(bundle, WHERE.name, tmp_path / "tile.xml")
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (port,) = compiled.inputs
    assert (port.any_name, list(port.partial_shape)[1:]) == ("image", [23, 29, 3])
    tile = some_tile(bundle)
    outputs = compiled({"image": tile[None].astype(np.float32)})
    anomaly_map, score = expected(tile)
    assert 0 < anomaly_map.mean() < 1
    np.testing.assert_allclose(outputs["anomaly_map"], anomaly_map[None, None], atol=1e-5)
    np.testing.assert_allclose(outputs["pred_score"], [score], atol=1e-5)
    assert np.array_equal(outputs["pred_mask"][0, 0], outputs["anomaly_map"][0, 0] >= 0.5)
    assert 0 < outputs["pred_mask"].mean() < 1
    assert outputs["pred_label"].tolist() == [score >= 0.5]


def test_several_tiles_at_once(bundle, tmp_path):
    compiled = ov.Core().compile_model(write_tile(bundle, WHERE.name, tmp_path / "tile"), "CPU")
    outputs = compiled({"image": np.zeros((3, 23, 29, 3), np.float32)})
    assert outputs["anomaly_map"].shape == (3, 1, 23, 29)
    assert outputs["pred_label"].shape == (3,)


def test_metadata(bundle, tmp_path):
    model = ov.Core().read_model(write_tile(bundle, WHERE.name, tmp_path / "tile.xml"))
    found = {key: model.get_rt_info(["model_info", key]).astype(str) for key in MODEL_INFO}
    assert found == MODEL_INFO
    assert found["model_type"] == "AnomalyDetection"


def test_model_api_opens_it(bundle, tmp_path):
    """With BGR frames of any size, as OpenCV reads them. Run with 0.4.7, which asks for an older OpenCV than we do."""
    models = pytest.importorskip("model_api.models", reason="openvino-model-api is not installed")
    path = write_tile(bundle, WHERE.name, tmp_path / "tile.xml")
    model = models.Model.create_model(str(path), device="CPU")
    assert type(model).__name__ == "AnomalyDetection"
    tile = some_tile(bundle)
    result = model(cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))
    anomaly_map, score = expected(tile)
    # The device's default precision (8 bits of bf16) and ModelAPI's own rounding of maps to uint8
    assert result.pred_score == pytest.approx(score, abs=0.02)
    np.testing.assert_allclose(result.anomaly_map / 255, anomaly_map, atol=0.02)
    assert result.pred_label == str(score >= 0.5)
    assert result.pred_mask.shape == (23, 29)
    larger = model(cv2.resize(tile, (60, 50)))
    assert larger.anomaly_map.shape == (50, 60)


def test_a_shared_model_serves_every_tile(tiny_bundle, tmp_path):
    bundle = read_bundle(tiny_bundle(tiny_manifest(tiny_setup(sharing=Sharing.ALL), normalisation=BY_TILE)))
    path = write_tile(bundle, WHERE.name, tmp_path / "tile.xml")
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    tile = some_tile(bundle)
    outputs = compiled({"image": tile[None].astype(np.float32)})
    anomaly_map, score = expected(tile, Location(0, 0))  # one head, but the scales of the third tile
    assert 0 < score < 1
    np.testing.assert_allclose(outputs["anomaly_map"], anomaly_map[None, None], atol=1e-5)
    np.testing.assert_allclose(outputs["pred_score"], [score], atol=1e-5)


def test_a_single_tile_has_the_images_thresholds(tiny_bundle, tmp_path):
    bundle = read_bundle(tiny_bundle(tiny_manifest(tiny_setup((23, 29), (23, 29), (23, 29)))))
    compiled = ov.Core().compile_model(write_tile(bundle, None, tmp_path / "tile.xml"), "CPU")
    tile = some_image(bundle.manifest.setup)
    raw = expected_tile(tile, Location(0, 0))[1]
    got = compiled({"image": tile[None].astype(np.float32)})["pred_score"]
    assert got[0] == pytest.approx(min(1, 0.5 * (raw - 0.2) / (1.2 - 0.2)), abs=0.02)


def test_refusals(tiny_bundle, bundle, tmp_path):
    merged = read_bundle(tiny_bundle(tiny_manifest(), name="merged"))
    with pytest.raises(
        InputError, match=r"fitted on 4 merged tiles and say nothing of one; train with --normalise tile"
    ):
        write_tile(merged, WHERE.name, tmp_path / "tile.xml")
    with pytest.raises(InputError, match="has no tile r07_c00; it has r00_c00, r00_c01, r01_c00, r01_c01"):
        write_tile(bundle, "r07_c00", tmp_path / "tile.xml")
    with pytest.raises(InputError, match="has 4 tiles; choose one of r00_c00, r00_c01, r01_c00, r01_c01"):
        write_tile(bundle, None, tmp_path / "tile.xml")
    other = read_bundle(tiny_bundle(tiny_manifest(normalisation=BY_TILE), Format.ONNX, name="onnx"))
    with pytest.raises(InputError, match="is an onnx bundle; ModelAPI needs one of --format openvino"):
        write_tile(other, WHERE.name, tmp_path / "tile.xml")
    manifest = bundle.manifest
    once = replace(manifest, setup=replace(manifest.setup, extractor_scope=ExtractorScope.IMAGE))
    with pytest.raises(InputError, match="sees whole images; train with --extractor-scope tile"):
        write_tile(replace(bundle, manifest=once), WHERE.name, tmp_path / "tile.xml")
    (tmp_path / "tile.xml").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"tile\.xml exists"):
        write_tile(bundle, WHERE.name, tmp_path / "tile.xml")
    (tmp_path / "constants.bin").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"constants\.bin exists"):
        write_tile(bundle, WHERE.name, tmp_path / "constants.xml")
    assert not (tmp_path / "constants.xml").exists()


def test_names_with_dots_are_kept(bundle, tmp_path):
    files = [write_tile(bundle, name, tmp_path / "out" / f"bolt.{name}") for name in ("r00_c00", "r00_c01")]
    assert [file.name for file in files] == ["bolt.r00_c00.xml", "bolt.r00_c01.xml"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_full_disk_leaves_nothing(bundle, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with file_size_limit(1_000), pytest.raises(OutputWriteError, match=r"cannot write .*tile\.xml"):
        write_tile(bundle, WHERE.name, folder / "tile.xml")
    assert list(folder.iterdir()) == []
