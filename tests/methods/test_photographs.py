"""Ordinary photographs for a penalty, and changed brightness, contrast and saturation."""

import cv2
import numpy as np
import pytest
import torch

from edge_ad.errors import DataNotFoundError, EmptyDataError
from edge_ad.imaging import read_image
from edge_ad.methods.parts import photographs as photographs_module
from edge_ad.methods.parts.photographs import Photographs, jitter, luminance


@pytest.fixture
def folder(tmp_path):
    """Three pictures of one colour each, in a sub-folder."""
    (tmp_path / "cats").mkdir()
    for index, colour in enumerate([(200, 30, 40), (20, 210, 30), (10, 40, 220)]):
        image = np.full((60, 90, 3), colour, np.uint8)
        cv2.imwrite(str(tmp_path / "cats" / f"{index}.png"), image[..., ::-1])
    return tmp_path


def test_photographs_are_tiles_by_seed_some_of_them_grey(folder):
    photographs = Photographs(folder, (24, 32))
    torch.manual_seed(3)
    drawn = photographs.draw(200)
    assert drawn.shape == (200, 24, 32, 3)
    assert drawn.dtype == torch.uint8
    torch.manual_seed(3)
    assert torch.equal(photographs.draw(200), drawn)
    grey = (drawn == drawn[..., :1]).flatten(1).all(1)
    assert 0.15 < grey.float().mean() < 0.45  # three in ten
    assert {tuple(image[0, 0].tolist()) for image in drawn[~grey]} == {(200, 30, 40), (20, 210, 30), (10, 40, 220)}


def test_a_photograph_is_read_once_while_it_fits(folder, monkeypatch):
    read = []
    monkeypatch.setattr(photographs_module, "read_image", lambda file: read.append(file) or read_image(file))
    photographs = Photographs(folder, (24, 32))
    torch.manual_seed(3)
    drawn = photographs.draw(50)
    assert sorted(read) == photographs.files
    monkeypatch.setattr(photographs_module, "MEMORY_BUDGET_BYTES", 24 * 32 * 3)
    torch.manual_seed(3)
    cramped = Photographs(folder, (24, 32))
    assert torch.equal(cramped.draw(50), drawn)
    assert len(cramped._held) == 1


def test_the_middle_at_twice_the_size_is_taken(tmp_path):
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:60, 20:60] = 255
    cv2.imwrite(str(tmp_path / "square.png"), image)
    assert (Photographs(tmp_path, (40, 40)).draw(1) == 255).all()
    assert 0.2 < (Photographs(tmp_path, (40, 80)).draw(1) == 255).float().mean() < 1  # the same middle, stretched


def test_no_photographs(tmp_path):
    with pytest.raises(EmptyDataError, match=r"no images in .*; name a folder of ordinary photographs"):
        Photographs(tmp_path, (8, 8)).draw(1)
    with pytest.raises(DataNotFoundError):
        Photographs(tmp_path / "nowhere", (8, 8)).draw(1)


def test_jitter_scales_one_thing_of_each_image():
    torch.manual_seed(0)
    image = torch.tensor([[60, 90, 120], [120, 90, 60]], dtype=torch.uint8).reshape(1, 1, 2, 3).expand(300, 1, 2, 3)
    changed = jitter(image, 0.5, 0.5).float()
    kinds = {tuple(each.flatten().tolist()) for each in changed}
    grey = luminance(image[:1])[0, 0, :, 0]  # 84.45 and 95.55
    expected = set()
    for pale in ([0.0, 0.0], [float(grey.mean())] * 2, grey.tolist()):
        pixels = [[p + (v - p) / 2 for v in pixel] for p, pixel in zip(pale, image[0, 0].tolist(), strict=True)]
        expected.add(tuple(float(round(v)) for pixel in pixels for v in pixel))
    assert kinds == expected
    assert image[0, 0, 0].tolist() == [60, 90, 120]
