"""Uninformed Students: map, loss and what is measured, against plain numpy; where the teacher comes from."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_run import scene

from edge_ad.errors import BackboneError, InputError, WeightsNotFoundError
from edge_ad.methods import create_model
from edge_ad.methods.parts import pdn
from edge_ad.methods.tile_model import TileStream
from edge_ad.methods.uninformed_students import SMALLEST_SPREAD, STILLEST
from edge_ad.tiling import Location, TileGrid

TILE = (32, 48)


def model(**parameters):
    torch.manual_seed(0)
    given = {"backbone": "resnet18", "weights": "none", "width": 4, "steps": 6, "batch_size": 2}
    return create_model("uninformed_students", TILE, **(given | parameters))


def stream(students, count=10, extract=None):
    grid = TileGrid(TILE, TILE, TILE)
    return TileStream(scene(count, TILE), grid, (Location(0, 0),), extract or students.extract, with_image=True)


@pytest.fixture
def head():
    made = model().new_head().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        made.teacher_mean.normal_()
        made.teacher_std.uniform_(0.5, 2)
        made.usual.copy_(torch.tensor([9.0, 8.0, 7.0, 6.0]).view(1, 4, 1, 1))
        made.spread.copy_(torch.tensor([2.0, 3.0, 4.0, 5.0]).view(1, 4, 1, 1))
    return made


def parts(head, image, teacher):
    """T (N, C, h', w'), and S (N, M, C, h', w') for each field, in float64."""
    normalised = (teacher.double() - head.teacher_mean.double()) / head.teacher_std.double()
    scaled = (image.permute(0, 3, 1, 2) / 255 - head.mean) / head.std
    return normalised.numpy(), [students(scaled).double().numpy() for students in head.students]


@torch.no_grad()
def test_map_and_score(head):
    image, teacher = torch.from_numpy(scene(2, TILE)), 3 * torch.randn(2, 192, 8, 12)
    target, described = parts(head, image, teacher)
    expected = np.zeros((2, 8, 12))
    for students, (usual, spread) in zip(described, (((9, 8), (2, 3)), ((7, 6), (4, 5))), strict=True):
        mean = (students[:, 0] + students[:, 1] + students[:, 2]) / 3
        error = ((mean - target) ** 2).sum(1)
        variance = (students**2).sum(2).mean(1) - (mean**2).sum(1)
        assert variance.min() > 0
        expected += (error - usual[0]) / spread[0] + (variance - usual[1]) / spread[1]
    expected /= 2
    # Every value lies in the middle of its 4 pixels
    rows, cols = (1.5 + 4 * np.arange(count) for count in (8, 12))
    wide = np.apply_along_axis(lambda row: np.interp(np.arange(TILE[1]), cols, row), 2, expected)
    expected = np.apply_along_axis(lambda col: np.interp(np.arange(TILE[0]), rows, col), 1, wide)
    anomaly_map, score = head(image, teacher)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2)), rtol=1e-4)


@torch.no_grad()
def test_variance_of_students_that_nearly_agree_is_not_lost(head):
    """Descriptions around 1000 that lie 0.01 apart: the mean of squares is a million, the variance a hundredth."""
    described = 1000 + 0.01 * torch.randn(1, 3, 192, 8, 12)
    head.imitations = lambda _: [described, described]
    variance = head.surprises(None, torch.zeros(1, 192, 8, 12))[:, 1]
    expected = described.double().numpy().var(1).sum(1)
    np.testing.assert_allclose(variance.numpy(), expected, rtol=0.05)


@torch.no_grad()
def test_loss_is_each_students_own(head):
    image, teacher = torch.from_numpy(scene(2, TILE)), torch.randn(2, 192, 8, 12)
    target, described = parts(head, image, teacher)
    expected = sum(((s[:, i] - target) ** 2).sum(1).mean() for s in described for i in range(3))
    assert float(model().loss(head, (image, teacher))) == pytest.approx(expected, rel=1e-4)


def test_channels_and_surprises_are_measured_on_normal_tiles():
    students = model(fields=(33,))

    def extract(image):
        (feature,) = students.extract(image)
        feature[:, :5] = 0.25  # dead channels
        return [feature]

    tiles = stream(students, extract=extract)
    head = students.fit(tiles, seed=1)
    training, validation = students._split(tiles, 1)
    (described,) = extract(torch.from_numpy(tiles.cut(training)))
    std = described.double().std((0, 2, 3), correction=0)
    floor = 0.1 * (std**2).mean().sqrt()
    assert floor > 0
    expected = np.maximum(std.numpy(), float(floor))
    assert (expected[:5] == float(floor)).all()
    np.testing.assert_allclose(head.teacher_std.flatten().numpy(), expected, rtol=1e-4)
    with torch.no_grad():
        image = torch.from_numpy(tiles.cut(validation))
        scaled = (head.surprises(image, *extract(image)) - head.usual) / head.spread
    np.testing.assert_allclose(scaled.mean((0, 2, 3)).numpy(), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std((0, 2, 3), correction=0).numpy(), 1, atol=1e-3)


def test_a_location_that_never_changes_is_not_infinitely_sensitive():
    students = model(fields=(33,))

    def extract(image):
        return [torch.full_like(feature, 0.25) for feature in students.extract(image)]

    head = students.fit(stream(students, extract=extract), seed=1)
    np.testing.assert_allclose(head.teacher_std, STILLEST * 0.25, rtol=1e-6)
    assert (head.spread >= SMALLEST_SPREAD).all()


def test_students_begin_apart_and_learn():
    students = model(fields=(33,), steps=40, learning_rate=2e-3)
    tiles = stream(students)
    inputs = next(iter(tiles))
    torch.manual_seed(3)
    untrained = students.new_head()
    students.prepare(untrained, [inputs])
    first = untrained.students[0].net[0].weight.detach()
    assert not torch.equal(first[:4], first[4:8])
    trained = students.fit(tiles, seed=0)
    with torch.no_grad():
        before, after = untrained.surprises(*inputs).mean((0, 2, 3)), trained.surprises(*inputs).mean((0, 2, 3))
    assert after[0] < 0.5 * before[0]  # the error


def test_a_distilled_teacher(tmp_path):
    torch.manual_seed(5)
    network = pdn.PatchDescription(pdn.layers_of("s"))
    save_file(network.net.state_dict(), tmp_path / "teacher.safetensors")
    students = model(backbone="pdn_s", weights=str(tmp_path / "teacher.safetensors"))
    assert students.weights_source == "teacher.safetensors"
    assert (students.channels, students.step, students.positions) == (384, 4, (8, 12))
    image = torch.from_numpy(scene(2, TILE))
    (described,) = students.extract(image)
    with torch.no_grad():
        expected = network((image.permute(0, 3, 1, 2) / 255 - students.teacher.mean) / students.teacher.std)
    np.testing.assert_allclose(described.numpy(), expected.numpy(), atol=1e-4)
    anomaly_map, _ = students.new_head().eval()(image, described)
    assert anomaly_map.shape == (2, 1, *TILE)
    again = create_model("uninformed_students", TILE, weights="none", **students.config)
    assert again.config == students.config


def test_step_is_that_of_the_first_layer():
    students = model(layers=("layer2",), fields=(17, 33))
    assert (students.step, students.positions, students.channels) == (8, (4, 6), 128)
    assert [part.shape for part in students.new_head().imitations(torch.zeros(1, *TILE, 3, dtype=torch.uint8))] == [
        (1, 3, 128, 4, 6)
    ] * 2


def test_bad_input():
    with pytest.raises(WeightsNotFoundError, match="make one with edge-ad distill"):
        model(backbone="pdn_m", weights="auto")
    with pytest.raises(InputError, match=r"size: expected one of s, m.*but got 'x'"):
        model(backbone="pdn_x")
    with pytest.raises(BackboneError, match="pdn_s is described by its last layer; name no layers"):
        model(backbone="pdn_s", layers=("layer1",))
    with pytest.raises(InputError, match=r"at least two students.*but got fields \[33, 65\], students 1"):
        model(students=1)
    with pytest.raises(InputError, match=r"but got fields \[\], students 3"):
        model(fields=())
    with pytest.raises(InputError, match="fields: expected some of 17, 33, 65, but got 15"):
        model(fields=(33, 15))
