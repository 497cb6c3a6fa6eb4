from __future__ import annotations

from collections import Counter
from itertools import product

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ad.data.assembly import COLUMNS, ROWS, STRUCTURAL, Assembly, Part
from edge_ad.data.logical import COUNTED, bad_assembly, good_assembly, is_good, looks_good


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def part_of(assembly: Assembly, first_column: int) -> object:
    """What a half of a plate that begins at a column of holes shows of it: two columns, and an end if it is outside."""
    holes = tuple(
        assembly.holes[row * COLUMNS + column] for row in range(ROWS) for column in (first_column, first_column + 1)
    )
    end = {0: 0, COLUMNS - 2: 1}.get(first_column)
    return holes if end is None else (holes, assembly.stickers[end], assembly.wires[end])


# --- the rules --------------------------------------------------------------------------------------------------------


def test_good_assemblies_obey_every_rule_and_vary():
    made = [good_assembly(rng(seed)) for seed in range(300)]
    for assembly in made:
        assert Counter(assembly.holes) == {Part.BOLT: 3, Part.WASHER: 2, Part.NONE: 3}
        assert sorted(assembly.stickers) == [False, True]
        assert assembly.wires[0] == assembly.wires[1]
        assert len(set(assembly.wires[0])) == 2
        assert is_good(assembly)
        assert looks_good(assembly)
    for index in range(ROWS * COLUMNS):
        assert {assembly.holes[index] for assembly in made} == set(Part)  # no place tells what belongs there
    assert len({assembly.wires[0] for assembly in made}) == 6


@pytest.mark.parametrize("defect", COUNTED.logical)
def test_a_defect_breaks_its_rule_alone(defect: str):
    verb, what = defect.split("_")
    for seed in range(30):
        assembly = bad_assembly(rng(seed), [defect])
        assert not is_good(assembly)
        counts = Counter(assembly.holes)
        wrong = {
            "count": counts != {Part.BOLT: 3, Part.WASHER: 2, Part.NONE: 3},
            "once": sum(assembly.stickers) != 1,
            "order": assembly.wires[0] != assembly.wires[1],
        }
        assert [rule for rule, broken in wrong.items() if broken] == [COUNTED.logical[defect].rule]
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
    for defect, seed in product(COUNTED.logical, range(15)):
        assembly = bad_assembly(rng(seed), [defect])
        assert all(part_of(assembly, first) in halves for first, halves in seen.items())
    one_sided = Assembly((Part.BOLT, Part.BOLT, Part.NONE, Part.WASHER) * 2, (True, False), assembly.wires)
    assert not looks_good(one_sided)  # four bolts on the left


# --- the pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", [*COUNTED.logical, *STRUCTURAL])
@pytest.mark.parametrize("size", [(128, 128), (160, 240)])  # below, a wire is a pixel or two
def test_a_region_is_where_the_defect_is(defect: str, size: tuple[int, int]):
    image, (region,) = COUNTED.bad_plate(rng(3), size, [defect])
    assert (image.shape, image.dtype, region.shape, region.dtype) == ((*size, 3), np.uint8, size, bool)
    (entry,) = [entry for entry in COUNTED.defects_config(size) if entry["defect_name"] == defect]
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
            _, (region,) = COUNTED.bad_plate(rng(seed), (96, 160), [defect])
            columns = np.flatnonzero(region.any(0))
            assert ((columns < 0.25 * 160) | (columns >= 0.75 * 160)).all()


def test_swapped_wires_change_colours_in_their_region_alone():
    def painted(image: NDArray[np.uint8], columns: slice) -> NDArray[np.float64]:
        return image[70:86, columns].astype(float).mean((0, 1))

    # The same seed draws the same plate but for the order of the colours on the right
    bad, _ = COUNTED.bad_plate(rng(0), (96, 160), ["swapped_wires"])
    good = COUNTED.plate(rng(0), (96, 160))
    np.testing.assert_allclose(painted(bad, slice(0, 30)), painted(good, slice(0, 30)), atol=1)
    np.testing.assert_allclose(painted(bad, slice(130, 160)), painted(good, slice(130, 160)), atol=3)  # the same paint
    changed = np.abs(bad.astype(int) - good).max(2) > 40
    assert changed.any()
    assert np.flatnonzero(changed.any(0)).min() > 0.75 * 160
