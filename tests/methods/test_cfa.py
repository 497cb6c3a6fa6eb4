"""CFA: map, loss and centres against plain numpy."""

import numpy as np
import pytest
import torch
from tiny_run import scene

from edge_ad.errors import InputError
from edge_ad.methods import create_model
from edge_ad.methods.cfa import k_means
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (32, 48)


def model(**parameters):
    torch.manual_seed(0)
    return create_model("cfa", TILE, backbone="resnet18", weights="none", dimensions=5, **parameters)


@pytest.fixture
def head():
    made = model().new_head().eval()
    torch.manual_seed(1)
    made.centres.normal_()
    made.radius.data.fill_(1.2)
    return made


def described(head, embedding):
    """(N, P, D) in float64: a 1 x 1 convolution of the embedding, row and column, both from -1 to 1."""
    values, weights = embedding.double().numpy(), head.descriptor.weight[:, :, 0, 0].detach().double().numpy()
    rows, cols = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 12), indexing="ij")
    placed = np.concatenate([values, np.broadcast_to([[rows, cols]], (len(values), 2, 8, 12))], axis=1)
    found = np.einsum("oc,nchw->nhwo", weights, placed) + head.descriptor.bias.detach().double().numpy()
    return found.reshape(len(values), -1, 5)


def distances(head, embedding):
    """Squared, to every centre, ascending (N, P, M)."""
    differences = described(head, embedding)[:, :, None] - head.centres.double().numpy()
    return np.sort((differences**2).sum(3), axis=2)


@torch.no_grad()
def test_map_and_score(head):
    torch.manual_seed(2)
    embedding = torch.randn(2, 448, 8, 12)
    nearest = np.sqrt(distances(head, embedding)[:, :, :3])
    share = np.exp(-nearest[:, :, 0]) / np.exp(-nearest).sum(2)
    expected = head.upsample(torch.from_numpy((share * nearest[:, :, 0]).reshape(2, 1, 8, 12)).float()).numpy()
    anomaly_map, score = head(embedding)
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_loss(head):
    torch.manual_seed(2)
    embedding = torch.randn(2, 448, 8, 12)
    d = distances(head, embedding)
    attraction = np.maximum(d[:, :, :3] - 1.2**2, 0).mean()
    repulsion = np.maximum(1.2**2 - d[:, :, 3:6] - 0.1, 0).mean()
    assert attraction > 0
    assert repulsion > 0
    assert float(model().loss(head, (embedding,))) == pytest.approx(1000 * (attraction + repulsion), rel=1e-4)


def test_centres_are_the_untrained_means_of_positions():
    cfa = model(steps=3, batch_size=2)
    grid = TileGrid(TILE, TILE, TILE)
    tiles = TileStream(scene(6, TILE), grid, (Location(0, 0),), cfa.extract)
    trained = cfa.fit(tiles, seed=4)
    torch.manual_seed(4)
    untrained = cfa.new_head()
    embeddings = torch.cat([embedding for (embedding,) in tiles])
    np.testing.assert_allclose(trained.centres.numpy(), described(untrained, embeddings).mean(0), atol=1e-5)
    assert not torch.equal(trained.descriptor.weight, untrained.descriptor.weight)
    assert cfa.adapt(trained, tiles, 4) is trained


def test_k_means_finds_the_groups():
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1)
    found = k_means(points, 3)
    assert torch.cdist(middles, found).min(1).values.max() < 0.1


def test_bad_input():
    with pytest.raises(InputError, match="centres: expected 6 to 96, the positions of a tile, but got 97"):
        model(centres=97)
    with pytest.raises(InputError, match="but got 5"):
        model(centres=5)
    with pytest.raises(InputError, match="but got 0"):
        model(centres=0)
    with pytest.raises(InputError, match="dimensions: expected 1 or more, but got 0"):
        create_model("cfa", TILE, backbone="resnet18", weights="none", dimensions=0)


def test_gradients_are_those_of_the_whole_matrix_of_distances(head):
    torch.manual_seed(2)
    points = torch.randn(2, 96, 5)
    weights = torch.rand(2, 96, 6)
    found, expected = (points.clone().requires_grad_() for _ in range(2))
    (head.distances(found) * weights).sum().backward()
    (torch.cdist(expected, head.centres).square().sort(2).values[:, :, :6] * weights).sum().backward()
    np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_distances_are_float32_in_bf16_training(head):
    torch.manual_seed(2)
    head.centres.add_(30)  # far from the origin, where rounded squares have no difference left
    points = head.centres[:4].expand(2, 4, 5) + 0.1 * torch.randn(2, 4, 5)
    expected = ((points[:, :, None] - head.centres) ** 2).sum(3).sort(2).values[:, :, :3]
    with torch.autocast("cpu", torch.bfloat16):
        found = head.nearest(points)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0.05, atol=2e-3)
