"""The task of four variants: what a label says, what halves show of it, and where masks lie."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ad.data.assembly import COLUMNS, ROWS, Assembly, Label, Part, draw, photograph
from edge_ad.data.variants import LABELLED, MISMATCHES, VARIANTS, bad_assembly, good_assembly


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def halves(assembly: Assembly) -> tuple[object, object, object]:
    """What the left, the middle and the right half of a plate show of it; the label is in the left quarter."""
    left, middle, right = (
        tuple(assembly.holes[row * COLUMNS + column] for row in range(ROWS) for column in (first, first + 1))
        for first in range(COLUMNS - 1)
    )
    return (left, assembly.label, assembly.wires[0]), middle, (right, assembly.wires[1])


def test_good_assemblies_are_the_variants():
    made = {good_assembly(rng(seed)) for seed in range(100)}
    assert made == set(VARIANTS.values())
    assert len(made) == len(Label) == 4
    assert len({assembly.holes for assembly in made}) == 4
    assert all(assembly.label is label for label, assembly in VARIANTS.items())


@pytest.mark.parametrize("defect", LABELLED.logical)
def test_a_defect_is_one_of_the_combination_alone(defect: str):
    verb, what = defect.split("_")
    seen = [set(shown) for shown in zip(*map(halves, VARIANTS.values()), strict=True)]
    made = {bad_assembly(rng(seed), [defect]) for seed in range(30)}
    assert len(made) == len(MISMATCHES[defect])
    for assembly in made:
        assert assembly not in VARIANTS.values()
        assert all(shown in good for shown, good in zip(halves(assembly), seen, strict=True))
        said = VARIANTS[assembly.label].holes
        changes = [(wanted, part) for wanted, part in zip(said, assembly.holes, strict=True) if wanted is not part]
        match verb:
            case "missing":
                assert changes == [(Part(what), Part.NONE)]
            case "extra":
                assert changes == [(Part.NONE, Part(what))]
            case _:
                assert changes[0] == changes[1][::-1]
                assert len(changes) == 2


@pytest.mark.parametrize("defect", LABELLED.logical)
@pytest.mark.parametrize("size", [(128, 128), (160, 240)])
def test_a_region_is_the_label_and_the_parts_it_does_not_agree_with(defect: str, size: tuple[int, int]):
    image, (region,) = LABELLED.bad_plate(rng(3), size, [defect])
    assert (image.shape, image.dtype, region.shape, region.dtype) == ((*size, 3), np.uint8, size, bool)
    count, _, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    assert count - 1 == (3 if defect == "swapped_parts" else 2)
    ends = sorted((left, left + width) for left, _, width, _, _ in statistics[1:])
    assert ends[0][1] < 0.25 * size[1]  # the label, which the middle half does not show,
    assert all(start >= 0.5 * size[1] for start, _ in ends[1:])  # and parts, which the left half does not
    (entry,) = [entry for entry in LABELLED.defects_config(size) if entry["defect_name"] == defect]
    part = min(statistics[1:, cv2.CC_STAT_AREA])
    assert not entry["relative_saturation"]
    assert entry["saturation_threshold"] == pytest.approx(part, rel=0.25)


def test_halves_of_a_bad_plate_are_pixel_by_pixel_those_of_good_ones():
    """The same seed draws the same plate but for the parts: with the label's variant, and with that of the parts."""

    def shot(assembly: Assembly) -> NDArray[np.int64]:
        generator = rng(7)
        return photograph(draw(assembly, generator, (128, 128)).image, [], generator)[0].astype(np.int64)

    bad = bad_assembly(rng(0), ["missing_bolt"])
    ((said, there),) = MISMATCHES["missing_bolt"]
    shown, label, parts = (shot(assembly) for assembly in (bad, VARIANTS[said], VARIANTS[there]))
    np.testing.assert_array_equal(shown[:, :64], label[:, :64])
    np.testing.assert_array_equal(shown[:, 32:], parts[:, 32:])
    assert np.abs(shown - label).max() > 40
    assert np.abs(shown - parts).max() > 40
