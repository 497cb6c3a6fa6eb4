"""STFPM's map, score and loss against plain numpy in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import scene

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.parts.imitation import feature_distance
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (32, 48)
SIZES = ((8, 12), (4, 6), (2, 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("stfpm", TILE, backbone="resnet18", weights="none")


@pytest.fixture(scope="module")
def head(model):
    torch.manual_seed(1)
    return model.new_head().eval()


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TILE, 3), np.uint8))


@torch.no_grad()
def distances(model, head, image):
    """|t / |t| - s / |s||^2 per layer, from torch's features on."""
    scaled = (image.permute(0, 3, 1, 2) / 255 - head.mean) / head.std
    found = []
    for teacher, student in zip(model.extract(image), head.student(scaled), strict=True):
        t, s = (value.double().numpy() for value in (teacher, student))
        t, s = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in (t, s))
        found.append(((t - s) ** 2).sum(1))
    return found


@torch.no_grad()
def test_map_and_score(model, head, image):
    first = [
        F.interpolate(torch.from_numpy(d)[:, None], size=SIZES[0], mode="bilinear")[:, 0].numpy()
        for d in distances(model, head, image)
    ]
    product = np.cbrt(first[0] * first[1] * first[2])
    expected = F.interpolate(torch.from_numpy(product)[:, None], size=TILE, mode="bilinear").numpy()
    anomaly_map, score = head(image, *model.extract(image))
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_loss(model, head, image):
    expected = sum(d.mean() for d in distances(model, head, image))
    assert model.loss(head, (image, *model.extract(image))).item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_small_distances_do_not_vanish():
    """Features that agree to 1e-4 are 1e-8 apart; 1 - cosine in float32 is 0 or 6e-8 there."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(1, 64, 5, 7))
    student = teacher + 1e-4 * rng.normal(size=teacher.shape)
    unit = [value / np.linalg.norm(value, axis=1, keepdims=True) for value in (teacher, student)]
    expected = ((unit[0] - unit[1]) ** 2).sum(1, keepdims=True)
    actual = feature_distance(torch.from_numpy(teacher).float(), torch.from_numpy(student).float())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-2)


@torch.no_grad()
def test_a_student_that_agrees_everywhere_gives_a_finite_map(model, head, image):
    scaled = (image.permute(0, 3, 1, 2) / 255 - head.mean) / head.std
    anomaly_map, score = head(image, *head.student(scaled))
    assert torch.isfinite(anomaly_map).all()
    assert score.max() < 1e-6


def test_a_student_is_random_trainable_and_not_the_teacher(model):
    torch.manual_seed(3)
    one, two = model.new_head(), model.new_head()
    assert not torch.equal(one.student.conv1.weight, two.student.conv1.weight)
    assert not torch.equal(one.student.conv1.weight, model.teacher.net.conv1.weight)
    assert all(parameter.requires_grad for parameter in one.parameters())
    assert not any(parameter.requires_grad for parameter in model.extractor.parameters())
    # Every residual block begins as its shortcut
    scales = {name: m.weight for name, m in one.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert all((scale == (0 if name.endswith("bn2") else 1)).all() for name, scale in scales.items())
    # ResNet18 to layer3: 2.78 M parameters (METHODS, the tiled ensemble's table 3)
    assert sum(parameter.numel() for parameter in one.student.parameters()) == 2_782_784


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = create_model("stfpm", TILE, backbone="resnet18", weights="none", steps=24, batch_size=4)
    grid = TileGrid(TILE, TILE, TILE)
    tiles = TileStream(scene(10, TILE), grid, (Location(0, 0),), model.extract, with_image=True)
    trained, inputs = model.fit(tiles, seed=0), next(iter(tiles))
    with torch.no_grad():
        before, after = (model.loss(head, inputs).item() for head in (model.new_head().eval(), trained))
    assert after < 0.5 * before  # 0.28 measured


def test_the_official_hyper_parameters(model):
    for name, schedule in model.schedules.items():
        optimiser = schedule.optimiser([torch.nn.Parameter(torch.zeros(1))], lr=schedule.learning_rate)
        assert isinstance(optimiser, torch.optim.SGD)
        settings, rate = optimiser.param_groups[0], 0.4 if name == "original" else 1.6
        assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (rate, 0.9, 1e-4)
        assert (schedule.batch_size, schedule.keep_best) == (32, True)
    assert model.schedules["original"].epochs == 100
    assert model.schedules["paper"].steps == 200


def test_errors():
    with pytest.raises(BackboneError, match="tile size 40x32 is no multiple of the stride 16"):
        create_model("stfpm", (40, 32), backbone="resnet18", weights="none")
