"""A synthetic assembly task whose defects are logical: every part of a bad plate is good, their arrangement is not.

A good plate obeys three rules, each of which spans it from side to side:

* **count**: three bolts and two washers sit in any of the holes, the other three are empty;
* **once**: one sticker, on the left or on the right;
* **order**: the wires leave on the right in the order of colours in which they enter on the left.

Everything else varies. What a bad plate shows in its left, middle or right half occurs in good plates too, at the very
same place: a tile of that size, such as those of the setups ens4 and ens9, cannot tell that a rule is broken; a model
that sees the whole plate can. Masks mark every empty hole where a bolt is missing, and as much as one bolt suffices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.assembly import COLUMNS, ROWS, Assembly, Part, Plate, Wire
from edge_ad.data.assembly_task import AssemblyTask, Defect
from edge_ad.data.drawing import Rng

COUNTS = {Part.BOLT: 3, Part.WASHER: 2, Part.NONE: 3}


def is_good(assembly: Assembly) -> bool:
    """Whether all rules hold."""
    left, right = assembly.wires
    return Counter(assembly.holes) == COUNTS and sum(assembly.stickers) == 1 and left == right


def looks_good(assembly: Assembly) -> bool:
    """Whether the left, the middle and the right half may each be one of a good plate.

    Stickers and wires are: none of these halves shows both ends. Two columns of holes are where a good plate has
    enough of every part for them, the rest of it being in the other two.
    """
    return all(
        Counter(assembly.holes[row * COLUMNS + column] for row in range(ROWS) for column in (first, first + 1))[part]
        <= most
        for first in range(COLUMNS - 1)
        for part, most in COUNTS.items()
    )


def good_assembly(rng: Rng) -> Assembly:
    """One that obeys every rule."""
    parts = [part for part, count in COUNTS.items() for _ in range(count)]
    on_the_left = bool(rng.integers(2))
    colours = list(Wire)
    first, second = (colours[index] for index in rng.permutation(len(colours))[:2])
    return Assembly(
        holes=tuple(parts[index] for index in rng.permutation(len(parts))),
        stickers=(on_the_left, not on_the_left),
        wires=((first, second), (first, second)),
    )


def bad_assembly(rng: Rng, defects: Sequence[str]) -> Assembly:
    """One that has ``defects`` (of `COUNTED`), and yet looks good in every half."""
    while True:
        assembly = good_assembly(rng)
        for defect in defects:
            assembly = _broken(assembly, rng, defect)
        if looks_good(assembly):
            return assembly


def _broken(assembly: Assembly, rng: Rng, defect: str) -> Assembly:
    verb, _, what = defect.partition("_")
    if what == "wires":
        left, (top, bottom) = assembly.wires
        return replace(assembly, wires=(left, (bottom, top)))
    if what == "sticker":
        there = verb == "extra"
        return replace(assembly, stickers=(there, there))
    old, new = (Part(what), Part.NONE) if verb == "missing" else (Part.NONE, Part(what))
    holes = list(assembly.holes)
    candidates = [index for index, part in enumerate(holes) if part is old]
    holes[candidates[rng.integers(len(candidates))]] = new
    return replace(assembly, holes=tuple(holes))


def _region(drawn: Plate, assembly: Assembly, defect: str) -> NDArray[np.bool_]:
    """All places where the defect may be said to be."""
    verb, _, what = defect.partition("_")
    if what == "wires":
        parts = drawn.wires
    elif what == "sticker":
        parts = list(drawn.stickers.values())
    else:
        wanted = Part.NONE if verb == "missing" else Part(what)
        parts = [drawn.holes[index] for index, part in enumerate(assembly.holes) if part is wanted]
    union: NDArray[np.bool_] = np.logical_or.reduce(parts)
    return union


COUNTED = AssemblyTask(
    logical={
        "missing_bolt": Defect("count", "bolt"),
        "extra_bolt": Defect("count", "bolt"),
        "missing_washer": Defect("count", "washer"),
        "extra_washer": Defect("count", "washer"),
        "missing_sticker": Defect("once", "sticker"),
        "extra_sticker": Defect("once", "sticker"),
        "swapped_wires": Defect("order", "wires"),
    },
    turns=(
        *("swapped_wires", "missing_bolt", "extra_sticker", "swapped_wires", "extra_washer", "missing_sticker"),
        *("swapped_wires", "extra_bolt", "missing_washer"),
    ),
    good=good_assembly,
    bad=bad_assembly,
    region=_region,
)
