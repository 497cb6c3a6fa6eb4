"""One tile for Intel's ModelAPI: the merged graph against numpy, its metadata, and ModelAPI itself opening it."""

from dataclasses import replace

import cv2
import numpy as np
import openvino as ov
import pytest
from file_system import file_size_limit
from tiny_bundle import expected_tile, some_image, tiny_manifest, tiny_setup

import edge_ad
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Format, Merge, Normalisation, NormalisationStage, Scale, ScoreMerge
from edge_ad.errors import InputError, OutputExistsError, OutputWriteError
from edge_ad.exporters.model_api import write_tile
from edge_ad.setups import ExtractorScope, Sharing
from edge_ad.tiling import Location

TILE_SCORE = tuple(Scale(0.1 * n, 1.0 + 0.2 * n) for n in range(4))
TILE_MAP = tuple(Scale(0.05 * n, 0.5 + 0.1 * n) for n in range(4))
BY_TILE = Normalisation(NormalisationStage.TILE, "fixed", Scale(0.1, 0.6), Scale(0.1, 0.4), TILE_SCORE, TILE_MAP)
MERGE = Merge(ScoreMerge.MAX, 2.0, 0.1)
WHERE = Location(1, 0)


@pytest.fixture
def bundle(tiny_bundle):
    """Four tiles merged by their maximum, heads that take features and image, thresholds per tile."""
    return read_bundle(tiny_bundle(tiny_manifest(normalisation=BY_TILE, merge=MERGE)))


def some_tile(bundle):
    crops = list(bundle.manifest.setup.grid.crop(some_image(bundle.manifest.setup)))
    return np.ascontiguousarray(crops[2])


def expected(tile, model=WHERE):
    """(map, score) in [0, 1] of the tile at `WHERE`, the third, by the head of ``model``, in float64.

    By the tile's scale, then by that of merged values, as `Detector` does it.
    """

    def scaled(raw, *scales):
        for scale in scales:
            raw = 0.5 * (raw - scale.low) / (scale.threshold - scale.low)
        return np.clip(raw, 0, 1)

    raw_map, raw_score = expected_tile(tile, model)
    return scaled(raw_map, TILE_MAP[2], BY_TILE.map), scaled(raw_score, TILE_SCORE[2], BY_TILE.score)


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
    """By hand, from ModelAPI's docs/model-configuration.md: it has OpenCV's BGR, and the models were trained on RGB.

    Mean and scale are inside the graph: were they here too, ModelAPI would apply them once more.
    """
    model = ov.Core().read_model(write_tile(bundle, WHERE.name, tmp_path / "tile.xml"))
    assert model.get_rt_info(["model_info"]).value == {
        "model_type": "AnomalyDetection",
        "task": "segmentation",
        "labels": "Normal Anomaly",
        "image_threshold": "0.5",
        "pixel_threshold": "0.5",
        "normalization_scale": "1.0",
        "reverse_input_channels": "True",
        "resize_type": "standard",
    }


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
    bundle = read_bundle(
        tiny_bundle(tiny_manifest(tiny_setup(sharing=Sharing.ALL), normalisation=BY_TILE, merge=MERGE))
    )
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


def test_a_single_tile_of_a_stage_of_its_own_has_the_bundles_verdict(tiny_bundle, tmp_path):
    """Its scale, and then the merged one, which is what `edge-ad threshold` changes."""
    one = tiny_setup((23, 29), (23, 29), (23, 29))
    by_tile = replace(BY_TILE, score=Scale(-0.3, 0.7), tile_score=TILE_SCORE[1:2], tile_map=TILE_MAP[1:2])
    path = tiny_bundle(tiny_manifest(one, normalisation=by_tile))
    compiled = ov.Core().compile_model(
        write_tile(read_bundle(path), None, tmp_path / "tile.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with edge_ad.load(path, precision="f32") as detector:
        for image in (some_image(one), some_image(one) // 4):
            result, outputs = detector(image, color="rgb"), compiled({"image": image[None].astype(np.float32)})
            assert 0 < result.pred_score < 1
            assert outputs["pred_score"][0] == pytest.approx(result.pred_score, abs=1e-5)
            assert outputs["pred_label"][0] == result.pred_label
            np.testing.assert_allclose(outputs["anomaly_map"][0, 0], result.anomaly_map, atol=1e-5)


def test_among_tiles_merged_by_their_mean_one_has_its_own_threshold(tiny_bundle, tmp_path):
    bundle = read_bundle(tiny_bundle(tiny_manifest(normalisation=BY_TILE, merge=replace(MERGE, score=ScoreMerge.MEAN))))
    path = write_tile(bundle, WHERE.name, tmp_path / "tile.xml")
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    tile = some_tile(bundle)
    raw, scale = expected_tile(tile, WHERE)[1], TILE_SCORE[2]
    got = compiled({"image": tile[None].astype(np.float32)})["pred_score"][0]
    assert got == pytest.approx(0.5 * (raw - scale.low) / (scale.threshold - scale.low), abs=1e-5)


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
