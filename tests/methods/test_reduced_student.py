"""The Reduced Student's map, scores and loss against plain numpy in float64, and its network against the paper's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import scene

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.reduced_student import ReducedResNet
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (32, 48)
TINY = {"backbone": "resnet18", "layers": ("maxpool", "layer1", "layer2"), "weights": "none"}
NO_SCALE = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("reduced_student", TILE, **TINY)


@pytest.fixture(scope="module")
def head(model):
    torch.manual_seed(1)
    return model.new_head().eval()


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TILE, 3), np.uint8))


@torch.no_grad()
def distances(model, head, image):
    """|t / |t| - s / |s||^2 / 2 per layer, the teacher's maps but the first averaged over 2 x 2 positions."""
    found = []
    for index, (teacher, student) in enumerate(zip(model.teacher.network(image), head.student(image), strict=True)):
        t, s = (value.double().numpy() for value in (teacher, student))
        if index > 0:
            n, c, h, w = t.shape
            t = t.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
        t, s = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in (t, s))
        found.append(((t - s) ** 2).sum(1) / 2)
    return found


def total(layers):
    """Layers (N, h', w') upsampled to the tile and summed."""
    return sum(F.interpolate(torch.from_numpy(d)[:, None], size=TILE, mode="bilinear").numpy() for d in layers)


@torch.no_grad()
def test_map_and_score(model, head, image):
    layers = distances(model, head, image)
    assert [d.shape[1:] for d in layers] == [(8, 12), (4, 6), (2, 3)]
    anomaly_map, score = head(image, *model.extract(image))
    np.testing.assert_allclose(anomaly_map.numpy(), total(layers), rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), total(layers).max((1, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_the_sum_over_the_tiles_area_is_the_papers(head, model, image):
    other = create_model("reduced_student", TILE, **TINY, mean_score=True).new_head().eval()
    other.load_state_dict(head.state_dict())
    anomaly_map, score = other(image, *model.extract(image))
    np.testing.assert_allclose(score.numpy(), anomaly_map.numpy().sum((1, 2, 3)) / (32 * 48), rtol=1e-5)


@torch.no_grad()
def test_loss(model, head, image):
    expected = sum(d.mean() for d in distances(model, head, image))
    assert model.loss(head, (image, *model.extract(image))).item() == pytest.approx(expected, rel=1e-5)


def test_one_block_per_stage():
    """Stem 9,408 + 128; blocks 78,208, 230,144 and 919,040: 0.318 M to the second, 1.237 M to the third."""
    for channels, expected in (((64, 64, 128), 317_888), ((64, 64, 128, 256), 1_236_928)):
        student = ReducedResNet(channels, [4, 8, 16, 32][: len(channels)], *NO_SCALE)
        assert sum(parameter.numel() for parameter in student.parameters()) == expected


@pytest.mark.parametrize("reductions", [(4, 8, 16, 32), (2, 8, 16, 32), (4, 4, 8)])
def test_sizes_follow_the_taps(reductions):
    student = ReducedResNet([5, 7, 11, 13][: len(reductions)], reductions, *NO_SCALE).eval()
    maps = student(torch.zeros((2, 64, 96, 3), dtype=torch.uint8))
    expected = [(2, c, 64 // r, 96 // r) for c, r in zip((5, 7, 11, 13), reductions, strict=False)]
    assert [tuple(value.shape) for value in maps] == expected


@torch.no_grad()
def test_features_of_either_sign_can_be_learnt(head, image):
    assert all(value.min() < 0 < value.max() for value in head.student(image))


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "layers", "expected"),
    [
        ("resnet18", (), ["maxpool", "layer1", "layer2", "layer3"]),
        ("resnet18", ("act1", "layer1"), ["act1", "layer1"]),
        ("tf_efficientnet_lite0", (), ["blocks.0", "blocks.1", "blocks.2", "blocks.4"]),
    ],
)
def test_student_and_teacher_agree_in_shape(backbone, layers, expected):
    model = create_model("reduced_student", (64, 96), backbone=backbone, layers=layers, weights="none")
    assert model.config["layers"] == expected
    image = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)
    student = model.new_head().eval().student(image)
    assert [value.shape for value in student] == [value.shape for value in model.extract(image)]


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = create_model("reduced_student", TILE, **TINY, steps=24, batch_size=4)
    tiles = TileStream(scene(10, TILE), TileGrid(TILE, TILE, TILE), (Location(0, 0),), model.extract, with_image=True)
    trained, inputs = model.fit(tiles, seed=0), next(iter(tiles))
    with torch.no_grad():
        before, after = (model.loss(head, inputs).item() for head in (model.new_head().eval(), trained))
    assert after < 0.5 * before


def test_the_papers_hyper_parameters(model):
    for name, schedule in model.schedules.items():
        optimiser = schedule.optimiser([torch.nn.Parameter(torch.zeros(1))], lr=schedule.learning_rate)
        assert isinstance(optimiser, torch.optim.SGD)
        settings, rate = optimiser.param_groups[0], 0.4 if name == "original" else 3.2
        assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (rate, 0.9, 1e-4)
        assert schedule.keep_best
    assert (model.schedules["original"].epochs, model.schedules["original"].batch_size) == (100, 16)
    assert (model.schedules["paper"].steps, model.schedules["paper"].batch_size) == (200, 32)


def test_errors():
    with pytest.raises(
        BackboneError, match=r"tile size 64x48 is no multiple of 32, to which the layer layer3 of resnet"
    ):
        create_model("reduced_student", (64, 48), backbone="resnet18", weights="none")
