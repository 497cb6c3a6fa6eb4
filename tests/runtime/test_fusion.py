"""A global model beside the tiles, against the same arithmetic in plain numpy; see tiny_bundle.py for the graphs."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from fake_session import fake_detector
from tiny_bundle import expected_tile, some_image, tiny_manifest, tiny_setup

from edge_ad.bundle.manifest import Fusion, Manifest, Merge, Scale, ScoreMerge
from edge_ad.errors import InferenceError, ManifestError
from edge_ad.runtime.fusion import fuse_maps, fuse_scores
from edge_ad.tiling import WHOLE

SETUP = replace(tiny_setup(), global_model=True)
FUSION = Fusion(Scale(0.1, 0.9), Scale(0.0, 0.5), Scale(-0.1, 0.2), Scale(-0.05, 0.1))
SEAMLESS = Merge(ScoreMerge.MEAN, 2.0, 0.0)


def manifest(fusion: Fusion | None = FUSION) -> Manifest:
    plain = tiny_manifest(SETUP, merge=SEAMLESS)
    return replace(plain, normalisation=replace(plain.normalisation, fusion=fusion))


def scaled(values, scale):
    return 0.5 * (values - scale.low) / (scale.threshold - scale.low)


def expected(image):
    """(score, map) of ``image`` in float64."""
    grid = SETUP.grid
    scores, merged = [], np.zeros(grid.image_size)
    for location, tile in zip(grid.locations, grid.crop(image), strict=True):
        anomaly_map, score = expected_tile(tile, location)
        merged[grid.window(location)] = anomaly_map
        scores.append(score)
    small = cv2.resize(image, grid.tile_size[::-1], interpolation=cv2.INTER_AREA)
    whole_map, whole_score = expected_tile(small, WHOLE)
    enlarged = cv2.resize(whole_map, grid.image_size[::-1], interpolation=cv2.INTER_LINEAR)
    score = max(scaled(np.mean(scores), FUSION.tiles_score), scaled(whole_score, FUSION.global_score))
    return score, np.maximum(scaled(merged, FUSION.tiles_map), scaled(enlarged, FUSION.global_map))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_more_alarmed_part_decides(batch_size):
    images = np.stack([some_image(SETUP, seed) for seed in range(batch_size)])
    raw = fake_detector(manifest(), batch_size).raw(images)
    for image, score, anomaly_map in zip(images, raw.scores, raw.maps, strict=True):
        wanted_score, wanted_map = expected(image)
        assert score == pytest.approx(wanted_score, rel=1e-5)
        np.testing.assert_allclose(anomaly_map, wanted_map, atol=1e-5)


def test_each_part_can_be_the_one():
    tiles, whole = np.array([0.9, 0.1], np.float32), np.array([-0.1, 0.2], np.float32)
    np.testing.assert_allclose(fuse_scores(tiles, whole, FUSION), [0.5, 0.5], atol=1e-6)
    maps = np.full((1, 4, 6), 0.5, np.float32)
    whole_map = np.full((1, 2, 3), -0.05, np.float32)
    whole_map[0, 1, 2] = 0.4  # in the corner, enlarged linearly
    fused = fuse_maps(maps, whole_map, FUSION)
    assert fused is maps
    assert fused[0, 3, 5] == pytest.approx(1.5)
    assert fused[0, 0, 0] == pytest.approx(0.5)


def test_before_scales_are_fitted_the_tiles_speak_and_the_global_model_is_beside_them():
    image = some_image(SETUP)
    raw = fake_detector(manifest(fusion=None)).raw(image[None])
    tiles_only = fake_detector(tiny_manifest(tiny_setup(), merge=SEAMLESS)).raw(image[None])
    np.testing.assert_array_equal(raw.scores, tiles_only.scores)
    np.testing.assert_array_equal(raw.maps, tiles_only.maps)
    small = cv2.resize(image, SETUP.tile_size[::-1], interpolation=cv2.INTER_AREA)
    whole_map, whole_score = expected_tile(small, WHOLE)
    np.testing.assert_allclose(raw.global_maps[0], whole_map, atol=1e-6)
    assert raw.global_scores[0] == pytest.approx(whole_score, rel=1e-5)
    assert tiles_only.global_scores is None


def test_results_own_the_global_model_s_values():
    detector = fake_detector(manifest())
    first = detector.raw(some_image(SETUP, 0)[None])
    kept = first.global_maps.copy()
    detector.raw(some_image(SETUP, 1)[None])
    np.testing.assert_array_equal(first.global_maps, kept)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_numbers_that_are_none_name_the_whole_image(poison):
    detector = fake_detector(manifest())
    detector.heads[WHOLE].poison = poison
    with pytest.raises(InferenceError, match="tile whole: the model gave NaN or infinity"):
        detector.raw(some_image(SETUP)[None])


def test_a_manifest_has_fusion_with_a_global_model_and_only_then():
    plain = manifest().to_json()
    for fusion, global_model in ((None, True), (plain["normalisation"]["fusion"], False)):
        changed = {
            **plain,
            "setup": plain["setup"] | {"global_model": global_model},
            "normalisation": plain["normalisation"] | {"fusion": fusion},
            "graphs": [_head(location) for location in replace(SETUP, global_model=global_model).model_locations],
        }
        with pytest.raises(ManifestError, match="expected fusion with a global model, and only then"):
            Manifest.from_json(changed)


def _head(location):
    file = {"path": f"graphs/{location.name}.xml", "sha256": "ab" * 32, "size_bytes": 1}
    return {
        "role": "head",
        "location": list(location),
        "precision": "fp32",
        "files": [file],
        "keep_f32": True,
        "parameters": 1,
        "flops": 1,
    }
