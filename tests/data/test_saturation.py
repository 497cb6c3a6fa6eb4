from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_ad.data.layouts import Sample, read_dataset, read_masks
from edge_ad.data.saturation import (
    DefectsConfig,
    Saturation,
    defects_config_of,
    read_defects_config,
    read_regions,
)
from edge_ad.errors import DataNotFoundError, DefectsConfigError, MaskSizeError
from edge_ad.imaging import write_png

BOLT = {"defect_name": "missing_bolt", "pixel_value": 7, "saturation_threshold": 12, "relative_saturation": False}
SCRATCH = {"defect_name": "scratch", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True}


def write_config(folder: Path, *entries: Any) -> Path:
    path = folder / "defects_config.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def masked(folder: Path, *masks: np.ndarray) -> Sample:
    paths = tuple(folder / "truth" / f"{index:03d}.png" for index in range(len(masks)))
    for path, mask in zip(paths, masks, strict=True):
        write_png(path, mask)
    return Sample(folder / "image.png", 1, "logical_anomalies", paths)


@pytest.fixture
def config(tmp_path: Path) -> DefectsConfig:
    return read_defects_config(write_config(tmp_path, BOLT, SCRATCH))


def test_a_file_is_read_by_pixel_value(config: DefectsConfig):
    assert config.by_value == {7: Saturation("missing_bolt", 12, False), 255: Saturation("scratch", 0.5, True)}


@pytest.mark.parametrize(
    ("threshold", "relative", "region", "area"),
    [
        (12, False, 40, 12),
        (12, False, 9, 9),  # at most the region
        (0.5, True, 40, 20),
        (0.5, True, 9, 4),  # whole pixels, as the evaluation code rounds
        (1.0, True, 9, 9),
        (0.01, True, 9, 1),  # never none
    ],
)
def test_saturation_areas_by_hand(threshold: float, relative: bool, region: int, area: int):
    assert Saturation("x", threshold, relative).area(region) == area


def test_every_mask_is_a_region_however_many_parts_it_has(tmp_path: Path, config: DefectsConfig):
    # 7 7 . . 7 7      two places where the bolt may be missing: one region of 20 pixels, 12 are enough
    # and a scratch of 6 pixels across the first of them: a region of its own, 3 are enough
    bolt, scratch = np.zeros((2, 11, 13), np.uint8)
    bolt[2:7, 0:2] = bolt[2:7, 8:10] = 7
    scratch[4, 0:6] = 255
    sample = masked(tmp_path, bolt, scratch)
    first, second = read_regions(sample, (11, 13), config)
    np.testing.assert_array_equal(first.mask, bolt > 0)
    np.testing.assert_array_equal(second.mask, scratch > 0)
    assert (first.saturation_px, second.saturation_px) == (12, 3)
    np.testing.assert_array_equal(read_masks(sample, (11, 13)), first.mask | second.mask)
    assert read_regions(Sample(tmp_path / "good.png", 0), (11, 13), config) == []


def test_at_another_size_a_saturation_area_is_the_same_part_of_the_region(tmp_path: Path, config: DefectsConfig):
    bolt = np.zeros((11, 13), np.uint8)
    bolt[2:7, 0:5] = 7  # 25 pixels, of which 12 are enough
    scratch = np.zeros_like(bolt)
    scratch[8, 3] = 255
    sample = masked(tmp_path, bolt, scratch)
    larger = read_regions(sample, (11, 13), config, (22, 39))
    assert [np.count_nonzero(region.mask) for region in larger] == [6 * 25, 6]
    assert [region.saturation_px for region in larger] == [6 * 12, 6 * 1]
    (smaller,) = read_regions(sample, (11, 13), config, (5, 6))  # the scratch vanishes
    assert smaller.saturation_px == pytest.approx(np.count_nonzero(smaller.mask) * 12 / 25)


def test_regions_of_a_set_in_loco_layout(tmp_path: Path):
    for name in ("train/good/0.png", "test/good/0.png", "test/logical_anomalies/0.png"):
        write_png(tmp_path / name, np.zeros((4, 6, 3), np.uint8))
    assert defects_config_of(read_dataset(tmp_path, "loco")) is None  # no masks, nothing to explain
    write_png(tmp_path / "ground_truth/logical_anomalies/0/000.png", np.full((4, 6), 7, np.uint8))
    with pytest.raises(DataNotFoundError, match=r"defects_config\.json not found; it says how much of each mask"):
        defects_config_of(read_dataset(tmp_path, "loco"))
    write_config(tmp_path, BOLT)
    found = defects_config_of(read_dataset(tmp_path, "loco"))
    assert found is not None
    assert found.path == tmp_path / "defects_config.json"


BAD = {
    "not JSON": ("{", "is not readable JSON"),
    "not a list": ('{"defects": []}', "expected a list of defects, but got dict"),
    "not objects": ("[3]", r"json\[0\]: expected an object, but got 3"),
    "missing fields": ('[{"defect_name": "x"}]', "missing pixel_value, saturation_threshold, relative_saturation"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str):
    content, message = BAD[name]
    path = tmp_path / "defects_config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DefectsConfigError, match=message) as info:
        read_defects_config(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_value": 0}, "expected a pixel_value from 1 to 255, but got 0"),
        ({"pixel_value": 256}, "from 1 to 255, but got 256"),
        ({"pixel_value": True}, "from 1 to 255, but got True"),
        ({"pixel_value": 2.5}, "from 1 to 255, but got 2.5"),
        ({"saturation_threshold": 0}, "of whole pixels, but got 0"),
        ({"saturation_threshold": 0.5}, "of whole pixels, but got 0.5"),
        ({"saturation_threshold": -3}, "of whole pixels, but got -3"),
        ({"saturation_threshold": float("inf")}, "of whole pixels, but got inf"),
        ({"saturation_threshold": float("nan")}, "of whole pixels, but got nan"),
        ({"saturation_threshold": "12"}, "of whole pixels, but got '12'"),
        ({"relative_saturation": True}, r"in \(0, 1\], relative, but got 12"),
        ({"relative_saturation": True, "saturation_threshold": 0.0}, r"in \(0, 1\], relative, but got 0\.0"),
        ({"relative_saturation": 1}, "a true or false relative_saturation"),
        ({"defect_name": None}, "a text defect_name"),
    ],
)
def test_a_value_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(DefectsConfigError, match=rf"defects_config\.json\[1\]: .*{message}"):
        read_defects_config(write_config(tmp_path, SCRATCH, {**BOLT, **changes}))


def test_a_pixel_value_has_one_meaning(tmp_path: Path):
    path = write_config(tmp_path, BOLT, {**SCRATCH, "pixel_value": 7})
    with pytest.raises(DefectsConfigError, match=r"\[1\]: pixel_value 7 is that of 'missing_bolt' already"):
        read_defects_config(path)


def test_masks_that_do_not_fit(tmp_path: Path, config: DefectsConfig):
    good = np.full((4, 6), 7, np.uint8)
    for bad, message in (
        (np.full((4, 6), 9, np.uint8), r"001\.png has pixel value 9, but .*defects_config\.json knows 7, 255"),
        (np.where(np.eye(4, 6) > 0, 7, 255).astype(np.uint8), r"001\.png holds pixel values 7, 255, but a mask is one"),
        (np.zeros((4, 6), np.uint8), r"001\.png marks no pixel; remove it"),
    ):
        with pytest.raises(DefectsConfigError, match=message):
            read_regions(masked(tmp_path, good, bad), (4, 6), config)
    with pytest.raises(MaskSizeError, match=r"001\.png is 6x4, but its image image\.png is 4x6"):
        read_regions(masked(tmp_path, good, good.T), (4, 6), config)
