"""The region of interest: what lies outside changes nothing, from training to the line."""

import shutil

import cv2
import numpy as np
import pytest
from tiny_run import scene, tile_setup, tiny_model, tiny_run, write_images

import edge_ad
from edge_ad.bundle.files import read_bundle
from edge_ad.data.layouts import read_dataset
from edge_ad.errors import ChangedFileError, IncompleteRunError, InputError, RunMismatchError
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.exporters.model_api import write_tile
from edge_ad.roi import PAINT, Roi
from edge_ad.training.detector import run_detector
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


def read(data, roi):
    return read_training_images(
        read_dataset(data, "mvtec", None), SETUP, root=data, layout="mvtec", category=None, seed=0, roi=roi
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


def changed_outside(image):
    changed = image.copy()
    changed[~INSIDE] = np.random.default_rng(0).integers(0, 256, (np.count_nonzero(~INSIDE), 3))
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


def test_a_run_without_one_looks_everywhere(tmp_path):
    run, _ = tiny_run(tmp_path / "run", SETUP)
    assert run.roi() is None
    assert not (run.path / "roi.png").exists()
    (image,) = scene(1, SETUP.image_size, seed=9)
    with run_detector(run) as detector:
        plain, outside = detector.raw(image[None]), detector.raw(changed_outside(image)[None])
    assert plain.scores[0] != outside.scores[0]
