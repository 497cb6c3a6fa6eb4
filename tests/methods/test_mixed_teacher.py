"""MixedTeacher's maps, score, loss and fitted range against plain numpy in float64, and its second student."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import scene_images, tile_setup

from edge_ad.bundle.manifest import Format, Precision
from edge_ad.errors import BackboneError, InputError
from edge_ad.exporters.export import ExportOptions, export_run
from edge_ad.methods import create_model
from edge_ad.methods.mixed_teacher import SMALLEST_EXTENT, SecondStudent
from edge_ad.methods.parts.backbone import FeatureSpec
from edge_ad.training.trainer import train

TILE = (32, 48)
TINY = {
    "backbone": "resnet18",
    "second_backbone": "test_efficientnet",
    "second_layers": ("blocks.2", "blocks.3"),
    "weights": "none",
}
NO_SCALE = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("mixed_teacher", TILE, **TINY)


@pytest.fixture
def head(model):
    torch.manual_seed(1)
    return model.new_head().eval()


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TILE, 3), np.uint8))


@torch.no_grad()
def distances(model, head, image):
    """|t / |t| - s / |s||^2 / 2 per layer of the first and of the second teacher."""
    found = []
    for student, count, at in ((head.first, 3, 0), (head.second, 2, 3)):
        pairs = zip(model.extract(image)[at : at + count], student(image), strict=True)
        unit = [[v.double().numpy() for v in pair] for pair in pairs]
        unit = [[v / np.linalg.norm(v, axis=1, keepdims=True) for v in pair] for pair in unit]
        found.append([((t - s) ** 2).sum(1) / 2 for t, s in unit])
    return found


def maps(model, head, image):
    """A_first and A_second (N, 1, h, w)."""
    return [
        sum(F.interpolate(torch.from_numpy(d)[:, None], size=TILE, mode="bilinear").numpy() for d in layers)
        for layers in distances(model, head, image)
    ]


@torch.no_grad()
def test_map_and_score(model, head, image):
    first, second = maps(model, head, image)
    low, extent = np.quantile(second, 0.3), 0.25  # a third of the positions lies below
    head.low.fill_(low)
    head.extent.fill_(extent)
    expected = first * np.maximum((second - low) / extent, 0)
    assert 0.2 < (expected == 0).mean() < 0.4
    anomaly_map, score = head(image, *model.extract(image))
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-3)


@torch.no_grad()
def test_the_sum_over_the_tiles_area_is_the_papers(model, head, image):
    other = create_model("mixed_teacher", TILE, **TINY, mean_score=True).new_head().eval()
    other.load_state_dict(head.state_dict())
    anomaly_map, score = other(image, *model.extract(image))
    np.testing.assert_allclose(score.numpy(), anomaly_map.numpy().sum((1, 2, 3)) / (32 * 48), rtol=1e-4)


@torch.no_grad()
def test_equation_11_as_printed(model, head, image):
    """The range is that of each tile's own map, and nothing fitted counts."""
    other = create_model("mixed_teacher", TILE, **TINY, extent_of_tile=True).new_head().eval()
    other.load_state_dict(head.state_dict())
    other.low.fill_(9.0)
    first, second = maps(model, head, image)
    expected = first * np.ptp(second, axis=(1, 2, 3), keepdims=True) * second
    anomaly_map, score = other(image, *model.extract(image))
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_loss(head, image):
    for alpha in (0.1, 3.0):
        model = create_model("mixed_teacher", TILE, **TINY, alpha=alpha)
        first, second = (sum(d.mean() for d in layers) for layers in distances(model, head, image))
        loss = model.loss(head, (image, *model.extract(image)))
        assert loss.item() == pytest.approx(first + alpha * second, rel=1e-5)


@torch.no_grad()
def test_the_range_is_that_of_all_normal_tiles(model, head, image):
    batches = [(part, *model.extract(part)) for part in (image[:1], image[1:])]
    model.finish(head, batches)
    second = maps(model, head, image)[1]
    assert head.low.item() == pytest.approx(second.min(), rel=1e-5)
    assert head.extent.item() == pytest.approx(np.ptp(second), rel=1e-4)


@torch.no_grad()
def test_a_map_without_a_range_is_not_blown_up(model, head):
    """A student that always agrees with its teacher."""
    image = torch.zeros((1, *TILE, 3), dtype=torch.uint8)
    first = model.extract(image)[:3]
    model.finish(head, [(image, *first, *head.second(image))])
    assert head.extent.item() == pytest.approx(SMALLEST_EXTENT)


def test_the_second_students_convolutions():
    """To B0's blocks 5 and 6: 3-32-16-24-40-80-112-192, 320,544 weights by hand and 992 of normalisations."""
    student = SecondStudent([FeatureSpec("blocks.4", 112, 16), FeatureSpec("blocks.5", 192, 32)], *NO_SCALE)
    convolutions = [module for module in student.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [conv.in_channels for conv in convolutions] == [3, 32, 16, 24, 40, 80, 112]
    assert [conv.stride[0] for conv in convolutions] == [2, 1, 2, 2, 2, 1, 2]
    assert sum(parameter.numel() for parameter in student.parameters()) == 320_544 + 992


@torch.no_grad()
@pytest.mark.parametrize("reductions", [(16, 32), (4, 16), (8, 8), (2,)])
def test_sizes_follow_the_taps(reductions):
    student = SecondStudent([FeatureSpec("", 5 + r, r) for r in reductions], *NO_SCALE).eval()
    maps = student(torch.zeros((2, 64, 96, 3), dtype=torch.uint8))
    assert [tuple(value.shape) for value in maps] == [(2, 5 + r, 64 // r, 96 // r) for r in reductions]
    assert all(value.min() < 0 < value.max() for value in student(torch.randint(0, 256, (2, 64, 96, 3)).byte()))


@torch.no_grad()
def test_the_papers_teachers_and_layers():
    model = create_model("mixed_teacher", (64, 96), weights="none")
    assert (model.config["backbone"], model.config["layers"]) == ("resnet18", ["maxpool", "layer1", "layer2"])
    second = (model.config["second_backbone"], model.config["second_layers"])
    assert second == ("efficientnet_b0", ["blocks.4", "blocks.5"])
    assert model.weights_source == "none"  # of both
    image = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)
    head = model.new_head().eval()
    students = [*head.first(image), *head.second(image)]
    assert [value.shape for value in students] == [value.shape for value in model.extract(image)]
    assert len(model.feature_names) == len(students)
    assert create_model("mixed_teacher", (64, 96), weights="none", **model.config).config == model.config


def test_the_papers_schedule(model):
    original, paper = model.schedules["original"], model.schedules["paper"]
    assert (original.learning_rate, original.batch_size, original.epochs, original.keep_best) == (0.4, 16, 200, True)
    assert (paper.learning_rate, paper.batch_size, paper.steps, paper.keep_best) == (3.2, 32, 200, True)


@pytest.mark.parametrize("graph_format", Format)
def test_equation_11_as_printed_survives_int8(graph_format, tmp_path):
    """`export_run` compares maps and ranks, or there were no bundle; every other form is in test_contract.py."""
    torch.manual_seed(0)
    setup = tile_setup((64, 48), (64, 48))
    images = scene_images(setup, fit=12)
    model = create_model("mixed_teacher", (64, 48), **TINY, extent_of_tile=True, steps=96, batch_size=4)
    run = train(model, setup, images, tmp_path / "run", seed=5)
    manifest = export_run(run, images, tmp_path / "bundle", ExportOptions(graph_format, Precision.INT8))
    assert manifest.parity


def test_alpha_is_the_schedules():
    for schedule, alpha in ((None, 1.0), ("paper", 1.0), ("original", 0.1)):
        assert create_model("mixed_teacher", TILE, **TINY, schedule=schedule).alpha == alpha
    assert create_model("mixed_teacher", TILE, **TINY, schedule="original", alpha=0.5).alpha == 0.5


def test_errors():
    with pytest.raises(InputError, match=r"mixed_teacher: expected a positive alpha, but got 0\.0"):
        create_model("mixed_teacher", TILE, **TINY, alpha=0.0)
    with pytest.raises(BackboneError, match="tile size 64x48 is no multiple of the stride 32 of efficientnet_b0's"):
        create_model("mixed_teacher", (64, 48), weights="none")
