from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ad.data.layouts import read_dataset, read_masks
from edge_ad.data.logical import (
    COLUMNS,
    LOGICAL,
    ROWS,
    STRUCTURAL,
    Assembly,
    Part,
    bad_assembly,
    bad_plate,
    defects_config,
    good_assembly,
    plate,
    write_logical,
)
from edge_ad.data.saturation import defects_config_of, read_regions
from edge_ad.errors import OutputExistsError
from edge_ad.imaging import image_size

COUNTS = {"train": 2, "validation": 1, "test_good": 1, "test_logical": 9, "test_structural": 3}
SIZES = [(64, 64), (96, 160)]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def part_of(assembly: Assembly, first_column: int) -> object:
    """What a half of a plate that begins at a column of holes shows of it: two columns, and an end if it is outside."""
    holes = tuple(
        assembly.holes[row * COLUMNS + column] for row in range(ROWS) for column in (first_column, first_column + 1)
    )
    end = {0: 0, COLUMNS - 2: 1}.get(first_column)
    return holes if end is None else (holes, assembly.stickers[end], assembly.wires[end])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the rules --------------------------------------------------------------------------------------------------------


def test_good_assemblies_obey_every_rule_and_vary():
    made = [good_assembly(rng(seed)) for seed in range(300)]
    for assembly in made:
        assert Counter(assembly.holes) == {Part.BOLT: 3, Part.WASHER: 2, Part.NONE: 3}
        assert sorted(assembly.stickers) == [False, True]
        assert assembly.wires[0] == assembly.wires[1]
        assert len(set(assembly.wires[0])) == 2
        assert assembly.is_good
        assert assembly.looks_good
    for index in range(ROWS * COLUMNS):
        assert {assembly.holes[index] for assembly in made} == set(Part)  # no place tells what belongs there
    assert len({assembly.wires[0] for assembly in made}) == 6


@pytest.mark.parametrize("defect", LOGICAL)
def test_a_defect_breaks_its_rule_alone(defect: str):
    verb, what = defect.split("_")
    for seed in range(30):
        assembly = bad_assembly(rng(seed), [defect])
        assert not assembly.is_good
        counts = Counter(assembly.holes)
        wrong = {
            "count": counts != {Part.BOLT: 3, Part.WASHER: 2, Part.NONE: 3},
            "once": sum(assembly.stickers) != 1,
            "order": assembly.wires[0] != assembly.wires[1],
        }
        assert [rule for rule, broken in wrong.items() if broken] == [LOGICAL[defect]]
        match what:
            case "sticker":
                assert sum(assembly.stickers) == (2 if verb == "extra" else 0)
            case "wires":
                assert assembly.wires[1] == assembly.wires[0][::-1]
            case _:
                most = {Part.BOLT: 3, Part.WASHER: 2}[Part(what)]
                assert counts[Part(what)] == most + (1 if verb == "extra" else -1)


def test_every_half_of_a_bad_plate_is_a_half_of_good_ones():
    # By looking: what 20 000 good plates show of each half is all that can be there
    seen: dict[int, set[object]] = {first: set() for first in range(COLUMNS - 1)}
    for seed in range(20_000):
        assembly = good_assembly(rng(seed))
        for first in seen:
            seen[first].add(part_of(assembly, first))
    for defect, seed in product(LOGICAL, range(15)):
        assembly = bad_assembly(rng(seed), [defect])
        assert all(part_of(assembly, first) in halves for first, halves in seen.items())
    one_sided = Assembly((Part.BOLT, Part.BOLT, Part.NONE, Part.WASHER) * 2, (True, False), assembly.wires)
    assert not one_sided.looks_good  # four bolts on the left


# --- the pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", [*LOGICAL, *STRUCTURAL])
@pytest.mark.parametrize("size", [(128, 128), (160, 240)])  # below, a wire is a pixel or two
def test_a_region_is_where_the_defect_is(defect: str, size: tuple[int, int]):
    image, (region,) = bad_plate(rng(3), size, [defect])
    assert (image.shape, image.dtype, region.shape, region.dtype) == ((*size, 3), np.uint8, size, bool)
    (entry,) = [entry for entry in defects_config(size) if entry["defect_name"] == defect]
    count, _ = cv2.connectedComponents(region.astype(np.uint8))
    parts = {
        **{"missing_bolt": 4, "extra_bolt": 4, "missing_washer": 4, "extra_washer": 3},
        **{"missing_sticker": 2, "extra_sticker": 2, "swapped_wires": 4, "scratch": 1, "dent": 1},
    }
    assert count - 1 == parts[defect]
    if defect in STRUCTURAL:
        assert (entry["saturation_threshold"], entry["relative_saturation"]) == (1.0, True)
        return
    # One part is as much as the region divided by the places where it may be; both ends of the wires are one too many
    places = 2 if defect == "swapped_wires" else parts[defect]
    assert entry["saturation_threshold"] == pytest.approx(region.sum() / places, rel=0.25)
    assert not entry["relative_saturation"]


def test_no_half_shows_both_ends():
    """The ends of the wires and the places of stickers: left of one third, or right of two, however the plate lies."""
    for seed in range(5):
        for defect in ("swapped_wires", "extra_sticker"):
            _, (region,) = bad_plate(rng(seed), (96, 160), [defect])
            columns = np.flatnonzero(region.any(0))
            assert ((columns < 0.25 * 160) | (columns >= 0.75 * 160)).all()


def test_swapped_wires_change_colours_in_their_region_alone():
    def painted(image: NDArray[np.uint8], columns: slice) -> NDArray[np.float64]:
        return image[70:86, columns].astype(float).mean((0, 1))

    # The same seed draws the same plate but for the order of the colours on the right
    bad, _ = bad_plate(rng(0), (96, 160), ["swapped_wires"])
    good = plate(rng(0), (96, 160))
    np.testing.assert_allclose(painted(bad, slice(0, 30)), painted(good, slice(0, 30)), atol=1)
    np.testing.assert_allclose(painted(bad, slice(130, 160)), painted(good, slice(130, 160)), atol=3)  # the same paint
    changed = np.abs(bad.astype(int) - good).max(2) > 40
    assert changed.any()
    assert np.flatnonzero(changed.any(0)).min() > 0.75 * 160


# --- the data set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_data_set_in_loco_layout(tmp_path: Path, size: tuple[int, int]):
    told = []
    root = write_logical(
        tmp_path / "plates", size=size, **COUNTS, progress=lambda done, total, _: told.append((done, total))
    )
    assert told == [(done, 16) for done in range(1, 17)]
    dataset = read_dataset(root, "loco")
    config = defects_config_of(dataset)
    assert config is not None
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (2, 1, 13)
    assert Counter(sample.defect for sample in dataset.test) == {
        **{"good": 1, "logical_anomalies": 9, "structural_anomalies": 3}
    }
    named: dict[str, list[str]] = {}
    for sample in dataset.test:
        assert image_size(sample.path) == size
        regions = read_regions(sample, size, config)
        assert len(regions) == len(sample.masks)
        union = np.logical_or.reduce([np.zeros(size, bool), *(region.mask for region in regions)])
        np.testing.assert_array_equal(union, read_masks(sample, size))
        for mask, region in zip(sample.masks, regions, strict=True):
            assert 0 < region.saturation_px <= region.mask.sum()
            value = int(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED).max())
            named.setdefault(sample.defect, []).append(config.by_value[value].defect)
    assert Counter(len(sample.masks) for sample in dataset.test) == {0: 1, 1: 8, 2: 4}
    assert set(named["logical_anomalies"]) == set(LOGICAL)
    assert set(named["structural_anomalies"]) == set(STRUCTURAL)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_other_images(tmp_path: Path):
    first, again, other = (
        contents(write_logical(tmp_path / name, seed=seed, size=(64, 64), **COUNTS))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    images = [name for name in first if name.endswith(".png") and "ground_truth" not in name]
    assert all(first[name] != other[name] for name in images)
    assert len({first[name] for name in images}) == sum(COUNTS.values())


def test_an_existing_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "plates").mkdir()
    with pytest.raises(OutputExistsError, match="plates exists"):
        write_logical(tmp_path / "plates", size=(64, 64), **COUNTS)
    assert contents(tmp_path) == {}
