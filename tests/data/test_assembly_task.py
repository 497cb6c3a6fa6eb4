"""The data sets of assemblies as they are written: layout, masks, saturation areas, and the same by seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from file_system import contents

from edge_ad.data.assembly import STRUCTURAL
from edge_ad.data.assembly_task import AssemblyTask
from edge_ad.data.layouts import read_dataset, read_masks
from edge_ad.data.logical import COUNTED
from edge_ad.data.saturation import defects_config_of, read_regions
from edge_ad.data.variants import LABELLED
from edge_ad.errors import OutputExistsError
from edge_ad.imaging import image_size

COUNTS = {"train": 2, "validation": 1, "test_good": 1, "test_logical": 9, "test_structural": 3}
SIZES = [(64, 64), (96, 160)]
TASKS = {"counted": (COUNTED, {0: 1, 1: 8, 2: 4}), "labelled": (LABELLED, {0: 1, 1: 11, 2: 1})}  # images by masks


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> AssemblyTask:
    return TASKS[request.param][0]


@pytest.mark.parametrize(("task", "masks"), TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_data_set_in_loco_layout(
    tmp_path: Path, size: tuple[int, int], task: AssemblyTask, masks: dict[int, int]
):
    told = []
    root = task.write(
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
    assert Counter(len(sample.masks) for sample in dataset.test) == masks
    assert set(named["logical_anomalies"]) == set(task.logical)
    assert set(named["structural_anomalies"]) == set(STRUCTURAL)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_other_images(tmp_path: Path, task: AssemblyTask):
    first, again, other = (
        contents(task.write(tmp_path / name, seed=seed, size=(64, 64), **COUNTS))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    images = [name for name in first if name.endswith(".png") and "ground_truth" not in name]
    assert all(first[name] != other[name] for name in images)
    assert len({first[name] for name in images}) == sum(COUNTS.values())


def test_an_existing_folder_is_left_alone(tmp_path: Path, task: AssemblyTask):
    (tmp_path / "plates").mkdir()
    with pytest.raises(OutputExistsError, match="plates exists"):
        task.write(tmp_path / "plates", size=(64, 64), **COUNTS)
    assert contents(tmp_path) == {}
