"""A data set of assemblies of which some break a rule: good plates, logical and structural defects, masks.

Written as MVTec LOCO AD is: a mask marks all places where a defect may be said to be, and ``defects_config.json`` says
how much of it suffices. Deterministic by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad import atomic
from edge_ad.data.assembly import STRUCTURAL, Assembly, Plate, areas, draw, free_place, photograph
from edge_ad.data.drawing import Rng, staged_images
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

_STRUCTURAL_KIND = "structural_anomalies"


@dataclass(frozen=True)
class Defect:
    """A logical one: the ``rule`` it breaks, and what of its region is ``enough`` to be found, a key of `areas`."""

    rule: str
    enough: str


@dataclass(frozen=True)
class AssemblyTask:
    """The rules of a set.

    Attributes:
        logical: its logical defects by name.
        turns: the order, with repetitions, in which bad plates have them.
        good: an assembly that obeys every rule.
        bad: one with the defects named, no two of which break the same rule.
        region: all places of a plate with this assembly where the defect may be said to be, bool (H, W).
    """

    logical: Mapping[str, Defect]
    turns: tuple[str, ...]
    good: Callable[[Rng], Assembly]
    bad: Callable[[Rng, Sequence[str]], Assembly]
    region: Callable[[Plate, Assembly, str], NDArray[np.bool_]]

    def plate(self, rng: Rng, size: Size) -> NDArray[np.uint8]:
        """A good plate, uint8 (H, W, 3) RGB."""
        return photograph(draw(self.good(rng), rng, size).image, [], rng)[0]

    def bad_plate(
        self, rng: Rng, size: Size, defects: Sequence[str]
    ) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """A plate with ``defects``, keys of `logical` or of `STRUCTURAL`, and the region of each, bool (H, W)."""
        logical = [defect for defect in defects if defect in self.logical]
        assembly = self.bad(rng, logical) if logical else self.good(rng)
        drawn = draw(assembly, rng, size)
        regions = []
        for defect in defects:
            if defect in self.logical:
                regions.append(self.region(drawn, assembly, defect))
            else:
                drawn.image, region = STRUCTURAL[defect](drawn.image, rng, free_place(rng, size))
                regions.append(region)
        return photograph(drawn.image, regions, rng)

    def write(
        self,
        folder: str | Path,
        *,
        seed: int = 0,
        size: Size = (512, 512),
        train: int = 120,
        validation: int = 20,
        test_good: int = 30,
        test_logical: int = 36,
        test_structural: int = 24,
        progress: Progress = no_progress,
    ) -> Path:
        """Write the data set in MVTec LOCO layout and return its folder.

        Args:
            folder: must not exist.
            seed: the same seed gives the same images.
            size: (H, W).
            train, validation, test_good: number of good plates.
            test_logical, test_structural: number of bad plates; defects take turns, and every third plate has two of
                its kind where they can be on one plate.

        Raises:
            OutputExistsError: ``folder`` exists.
        """
        good = {"train/good": train, "validation/good": validation, "test/good": test_good}
        bad = {"logical_anomalies": test_logical, _STRUCTURAL_KIND: test_structural}
        values = self._pixel_values
        with staged_images(folder, seed, sum(good.values()) + sum(bad.values()), progress) as images:
            for part, count in good.items():
                for index in range(count):
                    images.write(f"{part}/{index:03d}.png", self.plate(images.rng(), size))
            for kind, count in bad.items():
                for index in range(count):
                    rng = images.rng()
                    defects = self._turn(kind, index, rng)
                    image, regions = self.bad_plate(rng, size, defects)
                    images.write(f"test/{kind}/{index:03d}.png", image)
                    for number, (defect, region) in enumerate(zip(defects, regions, strict=True)):
                        mask = region.astype(np.uint8) * values[defect]
                        images.write(f"ground_truth/{kind}/{index:03d}/{number:03d}.png", mask)
            atomic.write_json(images.folder / "defects_config.json", self.defects_config(size))
        return Path(folder)

    def defects_config(self, size: Size) -> list[dict[str, Any]]:
        """What `edge_ad.data.saturation` reads: of logical regions a part is enough, structural ones count whole."""
        parts = areas(size)
        entries = []
        for name, value in self._pixel_values.items():
            defect = self.logical.get(name)
            entries.append(
                {
                    "defect_name": name,
                    "pixel_value": value,
                    "saturation_threshold": max(1, round(parts[defect.enough])) if defect else 1.0,
                    "relative_saturation": defect is None,
                }
            )
        return entries

    @property
    def _pixel_values(self) -> dict[str, int]:
        return {defect: value for value, defect in enumerate((*self.logical, *STRUCTURAL), 1)}

    def _turn(self, kind: str, index: int, rng: Rng) -> tuple[str, ...]:
        """The defect whose turn it is; on every third plate another one as well, which breaks another rule."""
        turns = tuple(STRUCTURAL) if kind == _STRUCTURAL_KIND else self.turns
        rules = {name: defect.rule for name, defect in self.logical.items()}
        first = turns[index % len(turns)]
        others = [each for each in dict.fromkeys(turns) if rules.get(each, each) != rules.get(first, first)]
        if index % 3 != 2 or not others:
            return (first,)
        return (first, others[rng.integers(len(others))])
