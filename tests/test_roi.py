"""The region of interest: what lies outside changes nothing, from training to the line."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tiny_run import scene, tile_setup, tiny_model, tiny_run, write_images

import edge_ad
from edge_ad.benchmarks.protocol import BareRun
from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import NormalisationStage, Precision
from edge_ad.cli import main
from edge_ad.data.layouts import read_dataset
from edge_ad.errors import ChangedFileError, IncompleteRunError, InputError, ManifestError, RunMismatchError
from edge_ad.evaluation.evaluate import predict
from edge_ad.exporters import export
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.exporters.model_api import write_tile
from edge_ad.roi import PAINT, Roi
from edge_ad.runtime import overlay
from edge_ad.runtime.loading import open_detector
from edge_ad.setups import ExtractorScope, Sharing
from edge_ad.tiling import Location
from edge_ad.training.calibration import fit_normalisation
from edge_ad.training.extractor import extractor_stream
from edge_ad.training.run_detector import run_detector
from edge_ad.training.run_folder import RunFolder
from edge_ad.training.trainer import read_training_images, run_images, train

SETUP = tile_setup((32, 96), (32, 48))
INSIDE = np.zeros((32, 96), bool)
INSIDE[4:, :70] = True  # the right tile is partly outside


def write_roi(path, inside=INSIDE, scale=1):
    mask = inside.astype(np.uint8).repeat(scale, 0).repeat(scale, 1) * 255
    cv2.imwrite(str(path), mask)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, training images, folder of the raw images)."""
    folder = tmp_path_factory.mktemp("roi")
    data = write_images(folder / "data" / "train" / "good", scene(12, SETUP.image_size)).parents[1]
    roi = Roi.read(write_roi(folder / "where.png"), SETUP.image_size)
    images = read(data, roi)
    return train(tiny_model(SETUP.tile_size, 1), SETUP, images, folder / "run", seed=0), images, data


def read(data, roi, setup=SETUP):
    return read_training_images(
        read_dataset(data, "mvtec", None), setup, root=data, layout="mvtec", category=None, seed=0, roi=roi
    )


def test_a_region_is_read_at_the_size_of_images_and_paints_a_copy(tmp_path):
    roi = Roi.read(write_roi(tmp_path / "large.png", scale=3), SETUP.image_size)
    np.testing.assert_array_equal(roi.inside, INSIDE)
    images = scene(2, SETUP.image_size)
    before = images.copy()
    painted = roi.paint(images)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(painted[:, INSIDE], images[:, INSIDE])
    assert (painted[:, ~INSIDE] == PAINT).all()
    np.testing.assert_array_equal(roi.paint(painted), painted)
    (tmp_path / "again.png").write_bytes(roi.png())
    assert Roi.read(tmp_path / "again.png", SETUP.image_size).png() == roi.png()


@pytest.mark.parametrize(("inside", "what"), [(np.zeros((4, 5), bool), "all"), (np.ones((4, 5), bool), "nothing")])
def test_a_region_of_all_or_of_nothing_is_a_mistake(inside, what, tmp_path):
    with pytest.raises(InputError, match=rf"where\.png: {what} is black; paint black what is to be left out"):
        Roi.read(write_roi(tmp_path / "where.png", inside), SETUP.image_size)


def test_nearly_black_is_black_and_nearly_white_is_white(tmp_path):
    """As cameras and JPEG give them, in eight bits or sixteen."""
    noise = np.random.default_rng(0).integers(0, 128, (*INSIDE.shape, 3)).astype(np.uint8)
    noisy = np.where(INSIDE[..., None], 255 - noise, noise)
    for pixels in (noisy, noisy[..., 0], noisy.astype(np.uint16) * 257):
        cv2.imwrite(str(tmp_path / "where.png"), pixels)
        np.testing.assert_array_equal(Roi.read(tmp_path / "where.png", SETUP.image_size).inside, INSIDE)


@pytest.mark.parametrize(
    ("images", "fits"),
    [
        ((32, 96), True),
        ((320, 961), True),  # a tenth of it, rounded
        ((11, 32), True),
        ((32, 100), False),
        ((64, 64), False),
        ((96, 32), False),
    ],
)
def test_a_region_has_the_proportions_of_the_images(images, fits, tmp_path):
    path = write_roi(tmp_path / "where.png")
    if fits:
        np.testing.assert_array_equal(Roi.read(path, SETUP.image_size, images).inside, INSIDE)
        return
    with pytest.raises(InputError, match=rf"where\.png is 32x96, but the images are {images[0]}x{images[1]}; draw"):
        Roi.read(path, SETUP.image_size, images)


def test_training_images_are_painted_and_a_run_knows_its_region(trained, tmp_path):
    run, images, data = trained
    for part in (images.fit, images.held_out):
        assert (part[:, ~INSIDE] == PAINT).all()
        assert part[:, INSIDE].std() > 10
    again = run_images(RunFolder.open(run.path))
    np.testing.assert_array_equal(again.fit, images.fit)
    with pytest.raises(RunMismatchError, match=r"data\.roi"):
        train(tiny_model(SETUP.tile_size, 1), SETUP, read(data, None), run.path, seed=0)
    copy = shutil.copytree(run.path, tmp_path / "run")
    write_roi(copy / "roi.png", ~INSIDE)
    with pytest.raises(IncompleteRunError, match=r"roi\.png is missing or another one"):
        RunFolder.open(copy).roi()


def changed_outside(image, inside=INSIDE):
    changed = image.copy()
    changed[~inside] = np.random.default_rng(0).integers(0, 256, (np.count_nonzero(~inside), 3))
    return changed


def changed_inside(image):
    changed = image.copy()
    changed[14:20, 50:60] = 255
    return changed


def test_what_lies_outside_changes_nothing(trained, tmp_path):
    run, images, _ = trained
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions())
    assert manifest.roi is not None
    assert read_bundle(tmp_path / "bundle").manifest == manifest
    (image,) = scene(1, SETUP.image_size, seed=9)
    with edge_ad.load(tmp_path / "bundle") as bundle, run_detector(run, normalisation=run.normalisation()) as torch:
        for detector in (bundle, torch):
            plain, outside, inside = (
                detector(each, color="rgb") for each in (image, changed_outside(image), changed_inside(image))
            )
            np.testing.assert_array_equal(outside.raw_map, plain.raw_map)
            assert outside.raw_score == plain.raw_score
            assert inside.raw_score > plain.raw_score
            (_, scores, _), *_ = detector.tiles(changed_outside(image)[None])
            assert scores[0] == plain.tile_scores[0]
            np.testing.assert_array_equal(plain.frame, image)  # as it came
        with pytest.raises(InputError, match="looks at a region of interest, which no graph knows"):
            write_tile(read_bundle(tmp_path / "bundle"), "r00_c00", tmp_path / "tile.xml")
    write_roi(tmp_path / "bundle" / "roi.png", ~INSIDE)
    with pytest.raises(ChangedFileError, match=r"roi\.png"):
        edge_ad.load(tmp_path / "bundle")


def test_an_export_is_proved_on_defects_that_can_be_seen(trained, tmp_path, monkeypatch):
    """One that lies outside is painted over: it would be called anomalous, and look like a normal image."""
    run, images, _ = trained
    shown = []

    def outputs(detector, probes):
        shown.append(probes)
        return predict(detector, probes)

    monkeypatch.setattr(export, "predict", outputs)
    export_run(run, images, tmp_path / "bundle", ExportOptions(precision=Precision.FP32))
    count = len(images.held_out)
    for probes in shown:
        normal, planted = probes[:count], probes[count:]
        np.testing.assert_array_equal(normal, images.held_out)
        assert len(planted) == export.PARITY_IMAGES - count
        for index, image in enumerate(planted):
            assert (image != normal[index % count])[INSIDE].any()


def test_a_run_without_one_looks_everywhere(tmp_path):
    run, _ = tiny_run(tmp_path / "run", SETUP)
    assert run.roi() is None
    assert not (run.path / "roi.png").exists()
    (image,) = scene(1, SETUP.image_size, seed=9)
    with run_detector(run) as detector:
        plain, outside = detector.raw(image[None]), detector.raw(changed_outside(image)[None])
    assert plain.scores[0] != outside.scores[0]


class Counted:
    """A session that counts its runs."""

    def __init__(self, session):
        self.session = session
        self.runs = 0

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, feeds):
        self.runs += 1
        return self.session.run(feeds)


THREE = tile_setup((32, 144), (32, 48))  # of which the region above leaves the last one blank
REGION = np.pad(INSIDE, ((0, 0), (0, 48)))


@pytest.fixture(scope="module")
def with_blank_tile(tmp_path_factory):
    """(run, bundle's folder) of `THREE`."""
    folder = tmp_path_factory.mktemp("blank")
    data = write_images(folder / "data" / "train" / "good", scene(12, THREE.image_size)).parents[1]
    roi = Roi.read(write_roi(folder / "where.png", REGION), THREE.image_size)
    images = read(data, roi, THREE)
    run = train(tiny_model(THREE.tile_size, 1), THREE, images, folder / "run", seed=0)
    export_run(run, images, folder / "bundle", ExportOptions())
    return run, folder / "bundle"


def median_inside(maps, inside):
    return np.median([np.median(anomaly_map[inside]) for anomaly_map in maps])


@pytest.mark.parametrize(
    "change",
    [{"global_model": True}, {"extractor_scope": ExtractorScope.IMAGE}, {"sharing": Sharing.ALL}],
    ids=["a global model", "extractor once", "a shared model"],
)
def test_a_region_holds_in_every_kind_of_setup(change, tmp_path):
    """Of verdicts, and of the thresholds that they are judged by: half of the image, and a whole tile, lie outside."""
    setup = replace(THREE, **change)
    data = write_images(tmp_path / "data" / "train" / "good", scene(12, setup.image_size)).parents[1]
    images = read(data, Roi(REGION), setup)
    run = train(tiny_model(setup.tile_size, 1), setup, images, tmp_path / "run", seed=0)
    export_run(run, images, tmp_path / "bundle", ExportOptions(precision=Precision.FP32))
    norm = run.normalisation()
    with run_detector(run) as raw:
        found = [raw.raw(image[None]) for image in images.held_out]
    of_tiles = norm.fusion.tiles_map if norm.fusion else norm.map
    assert of_tiles.low == pytest.approx(median_inside([each.maps[0] for each in found], REGION))
    if norm.fusion:
        whole = [each.global_maps[0] for each in found]
        shrunk = REGION[:, 1::3]  # the middle one of the three columns that become one
        assert norm.fusion.global_map.low == pytest.approx(median_inside(whole, shrunk))
        assert norm.fusion.global_map.low != pytest.approx(median_inside(whole, np.ones_like(shrunk)), rel=0.02)
        maxima = [anomaly_map[shrunk].max() for anomaly_map in whole]
        assert norm.fusion.global_map.threshold == pytest.approx(np.mean(maxima) + 3 * np.std(maxima), rel=1e-5)
    (image,) = scene(1, setup.image_size, seed=9)
    with edge_ad.load(tmp_path / "bundle") as bundle, run_detector(run, normalisation=norm) as torch:
        for detector in (bundle, torch):
            plain, outside, inside = (
                detector.raw(each[None]) for each in (image, changed_outside(image, REGION), changed_inside(image))
            )
            for values in ("scores", "maps", "tile_scores", "global_scores", "global_maps"):
                np.testing.assert_array_equal(getattr(outside, values), getattr(plain, values))
            assert inside.scores[0] > plain.scores[0]
            assert np.isnan(plain.tile_scores[0]).tolist() == [False, False, True]
            assert (plain.maps[0][~REGION] == plain.maps[0][REGION].min()).all()


def test_tiles_of_which_nothing_is_left_are_blank():
    assert Roi(REGION).blank_tiles(THREE.grid) == ((0, 2),)
    assert Roi(INSIDE).blank_tiles(SETUP.grid) == ()
    one_pixel = np.zeros_like(REGION)
    one_pixel[0, 96] = True
    assert Roi(one_pixel).blank_tiles(THREE.grid) == ((0, 0), (0, 1))


def test_maps_are_quiet_outside():
    maps = np.random.default_rng(0).normal(size=(2, *INSIDE.shape)).astype(np.float32)
    quiet = maps.copy()
    Roi(INSIDE).quieten(quiet)
    np.testing.assert_array_equal(quiet[:, INSIDE], maps[:, INSIDE])
    for one, before in zip(quiet, maps, strict=True):
        assert (one[~INSIDE] == before[INSIDE].min()).all()


def test_the_maps_scale_is_that_of_the_inside(with_blank_tile):
    """Most of this image lies outside, where the map is as low as at its lowest place inside."""
    run, _ = with_blank_tile
    held_out = scene(12, THREE.image_size, seed=5)
    inside = REGION.copy()
    inside[:, 40:] = False
    with run_detector(run) as raw:
        raw.roi = Roi(inside)
        scale = fit_normalisation(raw, held_out).map
        maps = np.stack([raw.raw(image[None]).maps[0][inside] for image in held_out])
    assert scale.low == pytest.approx(np.median(np.median(maps, axis=1)))
    assert scale.low > maps.min(1).max()


def test_a_blank_tile_is_not_run_and_has_no_part_in_the_score(with_blank_tile):
    run, path = with_blank_tile
    manifest = read_bundle(path).manifest
    assert manifest.setup.blank_tiles == ((0, 2),)
    images = scene(3, THREE.image_size, seed=9)
    painted = Roi(REGION).paint(images)[:, :, : SETUP.image_size[1]]  # the part that the other two tiles see
    with open_detector(path, replace(manifest, setup=SETUP, roi=None), batch_size=2) as both_tiles:
        expected = [both_tiles.raw(painted[:2]), both_tiles.raw(painted[2:])]
    region = REGION[:, : SETUP.image_size[1]]
    with open_detector(path, manifest, batch_size=2) as detector, run_detector(run, batch_size=2) as torch:
        for raw, wanted in zip([detector.raw(images[:2]), detector.raw(images[2:])], expected, strict=True):
            np.testing.assert_array_equal(raw.maps[:, REGION], wanted.maps[:, region])
            np.testing.assert_array_equal(raw.tile_scores[:, :2], wanted.tile_scores)
            assert np.isnan(raw.tile_scores[:, 2]).all()
            np.testing.assert_array_equal(raw.scores, raw.tile_scores[:, :2].max(1))
        assert [location for location, *_ in detector.tiles(images[:2])] == [(0, 0), (0, 1)]
        assert torch.manifest.setup.blank_tiles == ((0, 2),)
        result = detector(images[0], color="rgb")
        assert not result.pred_mask[~REGION].any()
        overlay.draw(result, detector.grid, detector.roi)


def test_blank_tiles_do_not_spoil_thresholds_of_tiles(with_blank_tile):
    """A tile that is alike on all images, among tiles scaled by their own statistics."""
    run, _ = with_blank_tile
    held_out, new = scene(12, THREE.image_size, seed=5), scene(20, THREE.image_size, seed=6)
    with run_detector(run) as raw:
        normalisation = fit_normalisation(raw, held_out, stage=NormalisationStage.TILE)
        detector = raw.with_normalisation(normalisation)
        flagged = [detector(image, color="rgb").pred_label for image in new]
    assert len(normalisation.tile_score) == 3
    assert np.mean(flagged) <= 0.2


def test_the_scales_of_tiles_are_those_of_their_inside(with_blank_tile):
    """A tile that shows mostly paint: the median of its map is that of what is looked at."""
    run, _ = with_blank_tile
    held_out = scene(12, THREE.image_size, seed=5)
    inside = REGION.copy()
    inside[8:, :48] = False
    with run_detector(run) as raw:
        raw.roi = Roi(inside)
        normalisation = fit_normalisation(raw, held_out, stage=NormalisationStage.TILE)
        maps = np.stack([raw.tiles(image[None])[0][2][0] for image in held_out])
    expected = np.median([np.median(each[inside[:32, :48]]) for each in maps])
    assert normalisation.tile_map[0].low == pytest.approx(expected)
    assert normalisation.tile_map[0].low != pytest.approx(np.median(maps), rel=0.05)


def test_a_blank_tile_costs_nothing(with_blank_tile, capsys):
    """It has no model: nothing is trained, stored, loaded or run of it."""
    run, path = with_blank_tile
    assert sorted(file.name for file in (run.path / "tile_models").iterdir()) == [
        "r00_c00.safetensors",
        "r00_c01.safetensors",
    ]
    assert not list(path.rglob("r00_c02*"))
    manifest = read_bundle(path).manifest
    shared, *heads = manifest.in_running_order
    assert manifest.shared is shared
    assert [manifest.runs_per_image(graph) for graph in (shared, *heads)] == [2, 1, 1]
    with open_detector(path, manifest) as detector:
        detector.runner.heads = {location: Counted(head) for location, head in detector.heads.items()}
        BareRun(detector, scene(1, THREE.image_size))()
        assert [head.runs for head in detector.heads.values()] == [1, 1]
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    assert "roi.png; 1 of 3 tiles lie outside and are left out" in capsys.readouterr().out


def test_a_model_of_all_tiles_is_not_shown_those_that_are_blank(with_blank_tile):
    """Neither is the extractor while it is quantised: paint would set its ranges."""
    run, _ = with_blank_tile
    shared = replace(run.settings.setup, sharing=Sharing.ALL)
    assert shared.tiles_of(Location(0, 0)) == ((0, 0), (0, 1))
    shown = extractor_stream(run.settings.setup, scene(5, THREE.image_size), lambda image: (), 4)
    assert (shown.locations, len(shown)) == (((0, 0), (0, 1)), 10)


def test_a_tile_that_is_to_be_looked_at_cannot_be_called_blank(with_blank_tile):
    _, path = with_blank_tile
    manifest = read_bundle(path).manifest
    wrong = replace(manifest, setup=replace(manifest.setup, blank_tiles=((0, 1), (0, 2))))
    with pytest.raises(ManifestError, match=r"blank_tiles: \[\(0, 1\)\] are to be looked at; export the bundle again"):
        open_detector(path, wrong)
    with pytest.raises(ManifestError, match=r"blank_tiles: \[\(0, 1\), \(0, 2\)\] are to be looked at"):
        open_detector(path, replace(wrong, roi=None))
