"""Thresholds by hand: two tiles side by side whose values can be read off the pixels.

A tile of colour (3 a, 0, 0) has v = |mean - red| / 255 = 2 a / 255 everywhere, and tiny_bundle's heads give
gain * v + offset: 1 v + 0 on the left, 1.25 v + 0.01 on the right. One brighter pixel makes the maximum, which is the
tile's score, differ from the median.
"""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from fake_session import fake_detector
from tiny_bundle import head_constants, tiny_manifest, tiny_setup

from edge_ad.bundle.manifest import Merge, NormalisationStage, Scale, ScoreMerge
from edge_ad.errors import InputError, TooFewImagesError
from edge_ad.evaluation.raw_values import RawValues
from edge_ad.roi import Roi
from edge_ad.tiling import WHOLE
from edge_ad.training import calibration
from edge_ad.training.calibration import NARROWEST, fit_normalisation, widened
from edge_ad.training.run_detector import RAW

SETUP = tiny_setup(image_size=(5, 14), tile_size=(5, 7), stride=(5, 7))
LEVELS = [((10, 20), (30, 50)), ((12, 40), (30, 80)), ((20, 30), (10, 20))]  # image, tile: (a of most pixels, of one)
GAIN, OFFSET = np.array([1.0, 1.25]), np.array([0.0, 0.01])


def images(levels=LEVELS):
    made = np.zeros((len(levels), 5, 14, 3), np.uint8)
    for image, tiles in zip(made, levels, strict=True):
        for index, (most, one) in enumerate(tiles):
            image[:, 7 * index : 7 * index + 7, 0] = 3 * most
            image[2, 7 * index + 3, 0] = 3 * one
    return made


VALUES = np.array(LEVELS) * 2 / 255 * GAIN[:, None] + OFFSET[:, None]  # (image, tile, (median, maximum))


def detector(score=ScoreMerge.MEAN):
    # No seam smoothing: it would blend the two tiles
    return fake_detector(replace(tiny_manifest(SETUP, normalisation=RAW), merge=Merge(score, 2.0, 0.0)))


def median_of_maps(values):
    """(image,) of values (image, tile, (of 34 pixels, of one))."""
    return np.median(np.repeat(values, (34, 1), axis=2).reshape(len(values), -1), axis=1)


def sigma3(values):
    return values.mean() + 3 * np.sqrt(((values - values.mean()) ** 2).mean())


def test_stage_image():
    normalisation = fit_normalisation(detector(), images())
    scores, maxima = VALUES[:, :, 1].mean(1), VALUES[:, :, 1].max(1)
    medians = median_of_maps(VALUES)
    assert normalisation.score.low == pytest.approx(scores.min(), rel=1e-6)
    assert normalisation.score.threshold == pytest.approx(sigma3(scores), rel=1e-6)
    assert normalisation.map.low == pytest.approx(np.median(medians), rel=1e-6)
    assert normalisation.map.threshold == pytest.approx(sigma3(maxima), rel=1e-6)
    assert (normalisation.tile_score, normalisation.tile_map) == ((), ())
    assert normalisation.rule == "sigma:3 on 3 held-out normal images"


def test_the_score_merge_is_the_detectors():
    normalisation = fit_normalisation(detector(ScoreMerge.MAX), images(), rule="max")
    assert normalisation.score.threshold == pytest.approx(VALUES[:, :, 1].max(), rel=1e-6)


def test_stage_none_keeps_thresholds_of_raw_values():
    none = fit_normalisation(detector(), images(), stage=NormalisationStage.NONE)
    image = fit_normalisation(detector(), images())
    assert none == replace(image, stage=NormalisationStage.NONE)


def test_stage_tile():
    normalisation = fit_normalisation(detector(), images(), stage=NormalisationStage.TILE)
    scaled_scores, scaled_maps = np.empty((3, 2)), np.empty((3, 2, 2))
    for tile in range(2):
        medians, maxima = VALUES[:, tile].T
        assert normalisation.tile_score[tile].low == pytest.approx(maxima.min(), rel=1e-6)
        assert normalisation.tile_score[tile].threshold == pytest.approx(sigma3(maxima), rel=1e-6)
        assert normalisation.tile_map[tile].low == pytest.approx(np.median(medians), rel=1e-6)
        assert normalisation.tile_map[tile].threshold == pytest.approx(sigma3(maxima), rel=1e-6)
        for image in range(3):  # each by what the two others gave
            medians, maxima = np.delete(VALUES[:, tile], image, axis=0).T
            scaled_scores[image, tile] = scaled(VALUES[image, tile, 1], maxima)
            low = np.median(medians)
            scaled_maps[image, tile] = 0.5 * (VALUES[image, tile] - low) / (sigma3(maxima) - low)
    # Then the merged values of scaled tiles
    assert normalisation.score.threshold == pytest.approx(sigma3(scaled_scores.mean(1)), rel=1e-5)
    assert normalisation.score.low == pytest.approx(scaled_scores.mean(1).min(), abs=1e-6)
    assert normalisation.map.low == pytest.approx(np.median(median_of_maps(scaled_maps)), abs=1e-6)


def test_a_tile_of_a_larger_scale_does_not_rule_the_image():
    """What stage "tile" is for: a defect on the quiet left tile stands out although the right one is always louder."""
    rng = np.random.default_rng(0)
    normal = images([((10, rng.integers(20, 40)), (30, rng.integers(50, 80))) for _ in range(12)])
    quiet_defect = normal[:1].copy()
    quiet_defect[0, 1, 1, 0] = 255  # a = 85 where normal is 20 to 40
    scores = {}
    for stage in (NormalisationStage.IMAGE, NormalisationStage.TILE):
        raw = detector()
        with_thresholds = raw.with_normalisation(fit_normalisation(raw, normal, stage=stage))
        scores[stage] = with_thresholds(quiet_defect[0], color="rgb").pred_score
    assert scores[NormalisationStage.TILE] > 0.5
    assert scores[NormalisationStage.TILE] > scores[NormalisationStage.IMAGE]


def test_a_tile_that_never_changes_is_not_infinitely_sensitive():
    flat = images()
    flat[:, :, 7:] = 0
    normalisation = fit_normalisation(detector(), flat, stage=NormalisationStage.TILE)
    extents = [scale.threshold - scale.low for scale in normalisation.tile_score]
    assert extents[1] == pytest.approx(NARROWEST * extents[0], rel=1e-3)
    busy = VALUES[:, 0, 1]
    assert extents[0] == pytest.approx(sigma3(busy) - busy.min(), rel=1e-5)


def test_scales_of_tiles_do_not_make_thresholds_too_low():
    """Nine tiles alike, of normal values: as many good images are rejected as by merged values, about one in fifty."""
    rng, rejected = np.random.default_rng(0), []
    for _ in range(200):
        held_out, new = rng.normal(5, 1, (12, 9)), rng.normal(5, 1, (500, 9))
        seen = [[(value, value, 0.0) for value in image] for image in held_out]
        of_others = [tile_scales(others) for others in calibration._left_out(seen, "sigma:3")]
        merged = [max(map(unscaled, image, scales)) for image, scales in zip(held_out, of_others, strict=True)]
        threshold = np.mean(merged) + 3 * np.std(merged)
        scales = tile_scales(seen)
        rejected.append(np.mean([max(map(unscaled, image, scales)) >= threshold for image in new]))
    assert np.mean(rejected) < 0.035  # 0.1 where each image has part in what it is scaled by


def tile_scales(seen):
    return [RawValues.of(tile).scales("sigma:3")[0] for tile in zip(*seen, strict=True)]


def unscaled(value, scale):
    return (value - scale.low) / (scale.threshold - scale.low)


def test_two_images_are_too_few_to_leave_one_out():
    normalisation = fit_normalisation(detector(), images()[:2], stage=NormalisationStage.TILE)
    of_all = np.array([scaled(VALUES[:2, tile, 1], VALUES[:2, tile, 1]) for tile in range(2)])
    assert normalisation.score.threshold == pytest.approx(sigma3(of_all.mean(0)), rel=1e-5)


def test_widths_are_compared_with_tiles_that_change():
    """However many never do."""
    scales = widened([Scale(1.0, 1.0 + 1e-6)] * 6 + [Scale(0.0, 2.0)] * 3)
    assert [scale.threshold - scale.low for scale in scales] == pytest.approx([NARROWEST * 2] * 6 + [2] * 3)


def test_a_global_model_and_the_tiles_are_each_scaled_by_their_own():
    setup = replace(SETUP, global_model=True)
    raw = fake_detector(replace(tiny_manifest(setup, normalisation=RAW), merge=Merge(ScoreMerge.MEAN, 2.0, 0.0)))
    normalisation = fit_normalisation(raw, images())
    tiles = fit_normalisation(detector(), images())
    assert (normalisation.fusion.tiles_score, normalisation.fusion.tiles_map) == (tiles.score, tiles.map)
    gain, offset = head_constants(WHOLE)
    whole = [gain * np.abs(small.mean(2) - small[:, :, 0]) / 255 + offset for small in (resized(i) for i in images())]
    maxima = np.array([anomaly_map.max() for anomaly_map in whole])
    assert normalisation.fusion.global_score.low == pytest.approx(maxima.min(), rel=1e-5)
    assert normalisation.fusion.global_score.threshold == pytest.approx(sigma3(maxima), rel=1e-5)
    assert normalisation.fusion.global_map.low == pytest.approx(np.median([np.median(m) for m in whole]), rel=1e-5)
    # Then the fused values
    scores = VALUES[:, :, 1].mean(1)
    fused = np.array(
        [
            max(scaled(of[image], np.delete(of, image)) for of in (scores, maxima))  # by what the two others gave
            for image in range(3)
        ]
    )
    assert normalisation.score.low == pytest.approx(fused.min(), abs=1e-5)
    assert normalisation.score.threshold == pytest.approx(sigma3(fused), rel=1e-4)


@pytest.mark.parametrize(("column", "distance"), [(4, 28 / 3), (5, 50 / 3)])
def test_a_region_of_one_pixel_may_vanish_as_the_image_shrinks(column, distance):
    """Of two columns that become one the second is looked at: where that is paint, the map is looked at everywhere.

    The paint is (124, 116, 104), 28 / 3 from its mean. The pixel is (36, 0, 0) on the image in the middle: half of
    both is (80, 58, 52), 50 / 3 from its mean.
    """
    raw = fake_detector(tiny_manifest(replace(SETUP, global_model=True), normalisation=RAW))
    inside = np.zeros((5, 14), bool)
    inside[2, column] = True
    raw.roi = Roi(inside)
    gain, offset = head_constants(WHOLE)
    low = fit_normalisation(raw, images()).fusion.global_map.low
    assert low == pytest.approx(gain * distance / 255 + offset, rel=1e-5)


def resized(image):
    return cv2.resize(image, (7, 5), interpolation=cv2.INTER_AREA).astype(float)


def scaled(values, fitted_on):
    return 0.5 * (values - fitted_on.min()) / (sigma3(fitted_on) - fitted_on.min())


def test_progress_reaches_the_end():
    seen = []
    fit_normalisation(detector(), images(), stage=NormalisationStage.TILE, progress=lambda *step: seen.append(step))
    assert seen == [(n, 3, what) for what in ("thresholds per tile", "thresholds") for n in (1, 2, 3)]


def test_errors():
    with pytest.raises(TooFewImagesError):
        fit_normalisation(detector(), images()[:1])
    with pytest.raises(InputError, match="unknown threshold rule 'mode'"):
        fit_normalisation(detector(), images(), rule="mode")
