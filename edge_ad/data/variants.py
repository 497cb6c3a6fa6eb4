"""A synthetic assembly task with a few variants: a label on the left says which parts are on the right.

There are four good assemblies, and everything beside label and parts is alike in all of them, but for the play of every
part, how bolts are turned and wires bent, grain and light. A bad plate has the label of one variant and the parts of
another:

* **missing**, **extra**: a part less, or more, than the label asks for, which is as it should be below another label;
* **swapped**: the two parts that vary have changed places, as they are below another label.

What a bad plate shows in its left, middle or right half is what good plates show there, pixel by pixel: the label is in
the left quarter, the parts that vary are in the right half. Either the label is wrong or the parts are, so that a mask
marks both, and as much as one part suffices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.assembly import Assembly, Label, Part, Plate, Wire
from edge_ad.data.assembly_task import AssemblyTask, Defect
from edge_ad.data.drawing import Rng


def _variant(label: Label, upper: Part, lower: Part) -> Assembly:
    """``upper`` is in the last hole of the upper row, ``lower`` in the last but one of the lower row."""
    above = (Part.BOLT, Part.NONE, Part.WASHER, upper)
    below = (Part.WASHER, Part.BOLT, lower, Part.NONE)
    order = (Wire.RED, Wire.BLUE)
    return Assembly((*above, *below), stickers=(True, False), wires=(order, order), label=label)


VARIANTS = {
    label: _variant(label, upper, lower)
    for label, upper, lower in (
        (Label.WHITE, Part.BOLT, Part.NONE),
        (Label.BLUE, Part.BOLT, Part.BOLT),
        (Label.YELLOW, Part.BOLT, Part.WASHER),
        (Label.GREEN, Part.WASHER, Part.BOLT),
    )
}

# What the label says, and whose parts are there instead
MISMATCHES = {
    "missing_bolt": ((Label.BLUE, Label.WHITE),),
    "missing_washer": ((Label.YELLOW, Label.WHITE),),
    "extra_bolt": ((Label.WHITE, Label.BLUE),),
    "extra_washer": ((Label.WHITE, Label.YELLOW),),
    "swapped_parts": ((Label.YELLOW, Label.GREEN), (Label.GREEN, Label.YELLOW)),
}


def good_assembly(rng: Rng) -> Assembly:
    """One of `VARIANTS`."""
    return list(VARIANTS.values())[rng.integers(len(VARIANTS))]


def bad_assembly(rng: Rng, defects: Sequence[str]) -> Assembly:
    """One with the single defect of ``defects``, a key of `MISMATCHES`."""
    (defect,) = defects
    label, parts = MISMATCHES[defect][rng.integers(len(MISMATCHES[defect]))]
    return replace(VARIANTS[parts], label=label)


def _region(drawn: Plate, assembly: Assembly, _defect: str) -> NDArray[np.bool_]:
    """The label, and the holes that it does not agree with."""
    assert assembly.label is not None  # all of `VARIANTS` have one
    said = VARIANTS[assembly.label].holes
    wrong = [drawn.holes[hole] for hole, part in enumerate(assembly.holes) if part is not said[hole]]
    union: NDArray[np.bool_] = np.logical_or.reduce([drawn.stickers[0], *wrong])
    return union


LABELLED = AssemblyTask(
    logical={
        "missing_bolt": Defect("label", "bolt"),
        "missing_washer": Defect("label", "washer"),
        "extra_bolt": Defect("label", "bolt"),
        "extra_washer": Defect("label", "washer"),
        "swapped_parts": Defect("label", "washer"),
    },
    turns=("missing_bolt", "swapped_parts", "extra_bolt", "missing_washer", "swapped_parts", "extra_washer"),
    good=good_assembly,
    bad=bad_assembly,
    region=_region,
)
