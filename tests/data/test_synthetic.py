from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from file_system import contents

from edge_ad.data.layouts import read_dataset, read_masks
from edge_ad.data.synthetic import DEFECTS, defective_plate, plate, write_synthetic
from edge_ad.errors import OutputExistsError
from edge_ad.imaging import image_size, read_image, read_mask

SIZES = [(64, 64), (64, 96), (131, 79)]
COUNTS = {"train": 2, "test_good": 1, "test_defective": 5}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_other_images(tmp_path):
    first, again, other = (
        contents(write_synthetic(tmp_path / name, seed=seed, size=(64, 96), **COUNTS))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)
    assert len({content for name, content in first.items() if "ground_truth" not in name}) == sum(COUNTS.values())


@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_data_set_in_mvtec_layout(tmp_path, size):
    told = []
    root = write_synthetic(
        tmp_path / "plates", size=size, **COUNTS, progress=lambda done, total, _: told.append((done, total))
    )
    assert root == tmp_path / "plates"
    assert told == [(done, 8) for done in range(1, 9)]
    dataset = read_dataset(root, "mvtec")
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("plates", 2, 6)
    assert [sample.defect for sample in dataset.test if sample.label == 0] == ["good"]
    assert sorted(sample.defect for sample in dataset.test if sample.label) == sorted([*DEFECTS, "scratch"])
    for sample in (*dataset.train, *dataset.test):
        assert image_size(sample.path) == size
        assert read_masks(sample, size).any() == bool(sample.label) == bool(sample.masks)
        assert {*np.unique(read_mask(sample.path))} == {True}  # no pixel is black: sensors have an offset
    for sample in dataset.test:
        for mask in sample.masks:
            assert {*np.unique(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))} == {0, 255}


@pytest.mark.parametrize("size", SIZES)
def test_plates_differ_yet_have_their_structure_at_the_same_place(size):
    plates = np.stack([plate(np.random.default_rng(seed), size) for seed in range(6)]).astype(float)
    assert plates.shape == (6, *size, 3)
    mean = plates.mean(0)
    assert mean.std() > 2 * (plates - mean).std()  # what repeats outweighs what varies
    assert (plates - mean).std(axis=(1, 2, 3)).min() > 3
    centre = mean[size[0] // 2, size[1] // 2]
    assert centre.max() < 60 < 120 < np.median(mean)  # a dark bore in bright metal


@pytest.mark.parametrize("size", [*SIZES, (192, 256)])
@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_is_visible_and_lies_under_its_mask(kind, size):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        metal = np.full((*size, 3), 146, np.float32)
        damaged, mask = DEFECTS[kind](metal.copy(), rng)
        change = np.abs(damaged - metal).max(2)
        assert mask.shape == size
        assert 4 <= mask.sum() < 0.05 * mask.size
        assert change[mask].mean() > 14  # grey levels
        around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0
        assert change[~around].max() < 5
        assert mask.flat[change.argmax()]
        if size == (192, 256):  # below, a defect is so small that most of it is its soft edge
            assert change[mask].sum() > 0.5 * change.sum()


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_stands_out_from_the_structure_of_normal_plates(kind):
    size, seeds = (96, 128), range(8)
    normal = np.stack([plate(np.random.default_rng(100 + seed), size) for seed in range(12)]).astype(float)
    mean, spread = normal.mean(0), normal.std(0) + 1
    inside, outside = [], []
    for seed in seeds:
        image, mask = defective_plate(np.random.default_rng(seed), size, kind)
        assert (image.dtype, mask.dtype) == (np.uint8, bool)
        deviation = (np.abs(image - mean) / spread).max(2)
        inside.append(deviation[mask].mean())
        outside.append(deviation[~mask].mean())
    assert np.mean(inside) > 2 * np.mean(outside)


def test_large_plates_overflow_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in DEFECTS:
            defective_plate(np.random.default_rng(0), (64, 1500), kind)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "plates").mkdir()
    (tmp_path / "plates" / "mine").touch()
    with pytest.raises(OutputExistsError, match="plates exists"):
        write_synthetic(tmp_path / "plates", size=(64, 64), **COUNTS)
    assert contents(tmp_path) == {"plates/mine": b""}


def test_what_is_begun_and_not_ended_leaves_nothing(tmp_path):
    def stop(done: int, _total: int, _what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "plates", size=(64, 64), **COUNTS, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_read_as_it_was_made(tmp_path):
    root = write_synthetic(tmp_path / "plates", seed=3, size=(64, 96), **COUNTS)
    np.testing.assert_array_equal(
        read_image(root / "train" / "good" / "000.png"), plate(np.random.default_rng((3, 1)), (64, 96))
    )
