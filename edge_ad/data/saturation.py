"""How much of a ground-truth region must be found: the ``defects_config.json`` of MVTec LOCO AD.

A logical defect has no sharp outline. Where one of two bolts is missing, either place could be marked; the mask then
covers both, and to find as many pixels as one bolt has is to find the defect. The file lists the defects of a category:

    [{"defect_name": "missing_bolt", "pixel_value": 1, "saturation_threshold": 480, "relative_saturation": false},
     {"defect_name": "scratch", "pixel_value": 9, "saturation_threshold": 1.0, "relative_saturation": true}]

Each mask file is one region, all its parts together, in one pixel value. Its saturation area is that many pixels, at
most the region's, or that fraction of the region. Source: Bergmann et al., Beyond Dents and Scratches: Logical
Constraints in Unsupervised Anomaly Detection and Localization (IJCV 2022), section 4, and its evaluation code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad.data.layouts import Dataset, Sample, check_mask_size
from edge_ad.errors import DataNotFoundError, DefectsConfigError
from edge_ad.imaging import read_mask_values, resize_mask
from edge_ad.tiling import Size

_FIELDS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")


@dataclass(frozen=True)
class Saturation:
    """How much of a region of ``defect`` suffices: a fraction of it where ``relative``, else a number of pixels."""

    defect: str
    threshold: float
    relative: bool

    def area(self, region_px: int) -> int:
        """Saturation area of a region of ``region_px`` pixels of the image file: whole, from 1 to ``region_px``.

        >>> Saturation("scratch", 0.5, relative=True).area(9)
        4
        >>> Saturation("missing_bolt", 480, relative=False).area(300)
        300
        """
        wanted = int(self.threshold * region_px) if self.relative else int(self.threshold)
        return min(max(wanted, 1), region_px)


@dataclass(frozen=True)
class DefectsConfig:
    """The saturations of a category by the pixel value of their masks, and the file that says so."""

    path: Path
    by_value: Mapping[int, Saturation]


@dataclass(frozen=True, eq=False)
class Region:
    """One ground-truth region: ``mask`` bool (H, W), and how many of its pixels count as all of it."""

    mask: NDArray[np.bool_]
    saturation_px: float

    def within(self, inside: NDArray[np.bool_]) -> Region | None:
        """What of it is ``inside`` (H, W), complete at its saturation area or as a whole; None where nothing is."""
        mask = self.mask & inside
        found = int(np.count_nonzero(mask))
        return Region(mask, min(self.saturation_px, found)) if found else None


def defects_config_of(dataset: Dataset) -> DefectsConfig | None:
    """What a data set's layout says of its regions; None where the layout has no such file, or the set no masks.

    Raises:
        DataNotFoundError, DefectsConfigError: see `read_defects_config`.
    """
    if dataset.defects_config is None or not dataset.has_masks:
        return None
    return read_defects_config(dataset.defects_config)


def read_defects_config(path: Path) -> DefectsConfig:
    """A ``defects_config.json``.

    Raises:
        DataNotFoundError: no such file.
        DefectsConfigError: it is not JSON, lacks a field, or a value cannot be meant.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} not found; it says how much of each mask must be found: put it beside test/")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DefectsConfigError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(entries, list):
        raise DefectsConfigError(f"{path}: expected a list of defects, but got {type(entries).__name__}")
    by_value: dict[int, Saturation] = {}
    for index, entry in enumerate(entries):
        value, saturation = _entry(entry, f"{path}[{index}]")
        if value in by_value:
            raise DefectsConfigError(
                f"{path}[{index}]: pixel_value {value} is that of {by_value[value].defect!r} already; give each its own"
            )
        by_value[value] = saturation
    return DefectsConfig(path, by_value)


def read_regions(sample: Sample, image_size: Size, config: DefectsConfig, size: Size | None = None) -> list[Region]:
    """A region per mask of ``sample``, at ``size`` (nearest) or at its own; those that vanish there are left out.

    A saturation area is one of the image file. At another size it keeps its share of the region: a region is found
    there when the same part of it is.

    Args:
        image_size: (H, W) of the sample's image file.

    Raises:
        MaskSizeError: a mask is not of the image's size.
        DefectsConfigError: a mask holds no region, several pixel values, or one that the configuration does not name.
    """
    regions = []
    for path in sample.masks:
        values = read_mask_values(path)
        check_mask_size(values.shape, path, sample, image_size)
        mask = values > 0
        saturation = _saturation(np.unique(values[mask]).tolist(), path, config)
        region_px = int(np.count_nonzero(mask))
        resized = mask if size is None else resize_mask(mask, size)
        if found_px := int(np.count_nonzero(resized)):
            regions.append(Region(resized, saturation.area(region_px) * found_px / region_px))
    return regions


def _saturation(values: Iterable[int], path: Path, config: DefectsConfig) -> Saturation:
    match list(values):
        case []:
            raise DefectsConfigError(f"mask {path} marks no pixel; remove it")
        case [value] if value in config.by_value:
            return config.by_value[value]
        case [value]:
            known = ", ".join(map(str, config.by_value)) or "none"
            raise DefectsConfigError(
                f"mask {path} has pixel value {value}, but {config.path} knows {known}; they belong to different sets"
            )
        case several:
            raise DefectsConfigError(
                f"mask {path} holds pixel values {', '.join(map(str, several))}, but a mask is one region of one "
                "value; save each region as a PNG file of its own"
            )


def _entry(entry: Any, where: str) -> tuple[int, Saturation]:
    if not isinstance(entry, dict):
        raise DefectsConfigError(f"{where}: expected an object, but got {entry!r}")
    if missing := [name for name in _FIELDS if name not in entry]:
        raise DefectsConfigError(f"{where}: missing {', '.join(missing)}")
    name, value, threshold, relative = (entry[field] for field in _FIELDS)
    if not isinstance(name, str) or not isinstance(relative, bool):
        raise DefectsConfigError(f"{where}: expected a text defect_name and a true or false relative_saturation")
    if not _is_number(value) or value not in range(1, 256):
        raise DefectsConfigError(f"{where}: expected a pixel_value from 1 to 255, but got {value!r}")
    if relative and not (_is_number(threshold) and 0 < threshold <= 1):
        raise DefectsConfigError(f"{where}: expected a saturation_threshold in (0, 1], relative, but got {threshold!r}")
    if not relative and not (_is_number(threshold) and threshold >= 1 and threshold == int(threshold)):
        raise DefectsConfigError(f"{where}: expected a saturation_threshold of whole pixels, but got {threshold!r}")
    return int(value), Saturation(name, float(threshold), relative)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
