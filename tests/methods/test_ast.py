"""AST: the flow against its own Jacobian and its inverse, the encoding and the map against plain formulas."""

import math

import numpy as np
import pytest
import torch
from tiny_run import scene

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.ast import CLAMP, Ast, ClampedCoupling, FlowTeacher, positional_encoding
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (64, 48)


def model(**parameters) -> Ast:
    torch.manual_seed(0)
    given = {"backbone": "resnet18", "weights": "none", "teacher_width": 8, "student_width": 16}
    return create_model("ast", TILE, **(given | parameters))


def shuffled(module):
    """Weights that matter: a new flow is the identity."""
    torch.manual_seed(7)
    for name, value in module.named_parameters():
        if name.endswith("gain"):
            value.data.fill_(1.0)
    return module.double()


def test_encoding_is_sines_and_cosines_of_column_and_row():
    encoding = positional_encoding((3, 5), 8)[0].numpy()
    for row in range(3):
        for col in range(5):
            expected = []
            for place in (col, row):
                for k in range(2):
                    angle = place * 10000 ** (-k / 2)
                    expected += [math.sin(angle), math.cos(angle)]
            np.testing.assert_allclose(encoding[:, row, col], expected, atol=1e-6)


def test_a_new_flow_only_permutes():
    torch.manual_seed(0)
    flow, values = FlowTeacher(6, 4), torch.randn(2, 6, 3, 5)
    z, determinant = flow(values, torch.zeros(2, 32, 3, 5))
    assert torch.equal(z.sort(1).values, values.sort(1).values)
    assert (determinant == 0).all()


def test_determinant_is_that_of_the_jacobian():
    """Of one position, where kernels of one see nothing beside it: log |det dz/dx| by autograd."""
    torch.manual_seed(1)
    coupling = shuffled(ClampedCoupling(7, 4, kernel=1))
    encoding = torch.randn(1, 32, 1, 1, dtype=torch.float64)
    x = torch.randn(1, 7, 1, 1, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v, encoding)[0], x).reshape(7, 7)
    _, determinant = coupling(x, encoding)
    assert float(determinant.detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)
    assert float(determinant.detach().abs()) > 1e-3  # of something


@torch.no_grad()
def test_a_coupling_can_be_undone():
    torch.manual_seed(2)
    coupling = shuffled(ClampedCoupling(7, 4, kernel=3))
    x, encoding = torch.randn(2, 7, 4, 5, dtype=torch.float64), torch.randn(2, 32, 4, 5, dtype=torch.float64)
    z, _ = coupling(x, encoding)
    first, second = z[:, :3], z[:, 3:]
    scale, shift = coupling.by_first(first, encoding)
    second = (second - shift) * (-scale).exp()
    scale, shift = coupling.by_second(second, encoding)
    first = (first - shift) * (-scale).exp()
    back = torch.cat([first, second], 1)[:, coupling.order.argsort()]
    np.testing.assert_allclose(back.numpy(), x.numpy(), atol=1e-9)
    assert scale.abs().max() <= CLAMP


@torch.no_grad()
def test_map_and_score():
    head = model().new_head().eval()
    shuffled(head.teacher).float()
    features = torch.randn(2, 256, 4, 3)
    z, _ = head.teacher(*head.placed(features))
    imitated = head.student(*head.placed(features))
    expected = ((z.double() - imitated.double()) ** 2).mean(1, keepdim=True)
    expected = torch.nn.functional.interpolate(expected, size=TILE, mode="bilinear").numpy()
    anomaly_map, score = head(features)
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-4)


def test_teacher_is_trained_first_and_then_left_alone():
    ast = model(steps=30, batch_size=4, learning_rate=2e-3)
    grid = TileGrid(TILE, TILE, TILE)
    tiles = TileStream(scene(8, TILE), grid, (Location(0, 0),), ast.extract)
    told, teachers = [], []
    new_head = ast.new_head

    def remember():
        teachers.append(new_head())
        return teachers[0]

    ast.new_head = remember
    states = {}

    def progress(done, total, what):
        told.append(what)
        states[what, done] = {key: value.clone() for key, value in teachers[0].teacher.state_dict().items()}

    head = ast.fit(tiles, seed=0, progress=progress)
    assert told == ["training teacher"] * 30 + ["training student"] * 30
    trained, end = states["training teacher", 30], head.teacher.state_dict()
    assert all(torch.equal(end[key], value) for key, value in trained.items())
    inputs = next(iter(tiles))
    torch.manual_seed(3)
    with torch.no_grad():
        untrained = new_head().eval()
        assert ast.likelihood_loss(head, inputs) < ast.likelihood_loss(untrained, inputs)
        assert ast.loss(head, inputs) < 0.5 * (head.teacher(*head.placed(inputs[0]))[0] ** 2).mean()


def test_one_layer():
    with pytest.raises(BackboneError, match="ast taps one layer, but got layer2, layer3"):
        model(layers=("layer2", "layer3"))
    assert model(layers=("layer2",)).size == (8, 6)
