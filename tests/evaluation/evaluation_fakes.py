"""A predictor whose outputs are plain to see, and a small test set on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.layouts import Sample
from edge_ad.data.saturation import DefectsConfig, read_defects_config
from edge_ad.imaging import read_mask, write_png

SIZE = (11, 13)
FILE_SIZE = (22, 39)  # of the images on disk: twice as high, three times as wide


@dataclass(frozen=True)
class BrightnessRaw:
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]


class BrightnessPredictor:
    """The brighter, the more anomalous: a map is the red channel, a score its maximum."""

    image_size = SIZE

    def __init__(self) -> None:
        self.batches: list[int] = []

    def raw(self, images: NDArray[np.uint8]) -> BrightnessRaw:
        self.batches.append(len(images))
        maps = images[..., 0].astype(np.float32)
        return BrightnessRaw(maps.max((1, 2)), maps)


@dataclass(frozen=True)
class TestSet:
    """Five images at `SIZE`: two normal, a spot, a scratch, and a scratch as dark as the brighter normal image."""

    __test__ = False
    images: NDArray[np.uint8]
    samples: tuple[Sample, ...]


def write_test_set(folder: Path, with_masks: bool = True) -> TestSet:
    kinds = ("good", "good", "spot", "scratch", "scratch")
    images = np.full((5, *SIZE, 3), 10, np.uint8)
    images[1] = 20
    images[2, 3:5, 4:7] = 90
    images[3, 8, :] = 60
    images[4, 8, :] = 20
    samples = []
    for index, kind in enumerate(kinds):
        path = folder / kind / f"{index}.png"
        write_png(path, np.zeros((*FILE_SIZE, 3), np.uint8))
        masks: tuple[Path, ...] = ()
        if with_masks and kind != "good":
            mask = (images[index, :, :, 0] > 10).astype(np.uint8) * 255
            masks = (folder / "ground_truth" / f"{index}.png",)
            write_png(masks[0], mask.repeat(2, axis=0).repeat(3, axis=1))
        samples.append(Sample(path, int(kind != "good"), kind, masks))
    return TestSet(images, tuple(samples))


def write_saturated_set(folder: Path) -> tuple[TestSet, DefectsConfig]:
    """The same images, the spot called logical and the scratches structural, with regions of their own.

    Of the spot six pixels of its file are enough, of a scratch half. The image of the second scratch has another
    region, one pixel at `SIZE`, where the map shows nothing.
    """
    data = write_test_set(folder)
    path = folder / "defects_config.json"
    entries = (("missing_spot", 3, 6, False), ("scratch", 4, 0.5, True))
    fields = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    path.write_text(json.dumps([dict(zip(fields, entry, strict=True)) for entry in entries]), encoding="utf-8")
    samples = list(data.samples)
    for index, value in ((2, 3), (3, 4), (4, 4)):
        file = data.samples[index].masks[0]
        write_png(file, (read_mask(file) * value).astype(np.uint8))
        samples[index] = replace(samples[index], defect="logical" if value == 3 else "structural")
    second = np.zeros(FILE_SIZE, np.uint8)
    second[2:4, 3:6] = 4
    write_png(folder / "ground_truth" / "4b.png", second)
    samples[4] = replace(samples[4], masks=(*samples[4].masks, folder / "ground_truth" / "4b.png"))
    return TestSet(data.images, tuple(samples)), read_defects_config(path)
