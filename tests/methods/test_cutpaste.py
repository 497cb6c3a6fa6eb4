"""CutPaste: map, score, loss and labels against plain numpy."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from tiny_run import scene

from edge_ad.errors import InputError
from edge_ad.methods import create_model
from edge_ad.methods.cutpaste import SHRINKAGE, whitening
from edge_ad.methods.parts.pasting import Paste
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (64, 96)
GRID = TileGrid(TILE, TILE, TILE)


def model(**parameters):
    torch.manual_seed(0)
    given = {"steps": 3, "batch_size": 4} | parameters
    return create_model("cutpaste", TILE, backbone="resnet18", weights="none", layers=("layer2",), **given)


@pytest.fixture(scope="module")
def images():
    return scene(8, TILE)


@pytest.fixture(scope="module")
def fitted(images):
    kind = model()
    return kind, kind.fit(stream(kind, images), seed=2)


def stream(kind, images, extract=None):
    return TileStream(images, GRID, (Location(0, 0),), extract or kind.extract, 3)


def described(head, features):
    """(N P, E) in float64: 1 x 1 convolution, batch normalisation by its running statistics, ReLU, convolution."""
    first, norm, _, second = head.project
    x = features.double().numpy().transpose(0, 2, 3, 1).reshape(-1, features.shape[1])
    x = x @ first.weight[:, :, 0, 0].detach().double().numpy().T
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    x = (x - mean) / np.sqrt(variance + norm.eps) * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    return np.maximum(x, 0) @ second.weight[:, :, 0, 0].detach().double().numpy().T + second.bias.detach().numpy()


@torch.no_grad()
def test_map_and_score(fitted, images):
    kind, head = fitted
    normal = described(head, kind.extract(torch.from_numpy(images))[0])
    mean, covariance = normal.mean(0), np.cov(normal.T, bias=True)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / 128 * np.eye(128)
    features = kind.extract(torch.from_numpy(255 - images[:2]))[0]
    away = described(head, features) - mean
    distance = np.sqrt(np.einsum("nd,de,ne->n", away, np.linalg.inv(shrunk), away)).reshape(2, 1, 8, 12)
    upsampled = F.interpolate(torch.from_numpy(distance), size=TILE, mode="bilinear")[:, 0].numpy()
    expected = np.stack([scipy.ndimage.gaussian_filter(each, 4.0) for each in upsampled])
    anomaly_map, score = head(features)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2)), rtol=1e-3)


def test_whitening_by_hand():
    # Variances 4 and 1 along the axes, shrunk towards their mean of 2.5
    found = whitening(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
    expected = np.diag([1 / (0.99 * 4 + 0.01 * 2.5), 1 / (0.99 + 0.01 * 2.5)])
    np.testing.assert_allclose((found.T @ found).numpy(), expected, rtol=1e-6)
    assert torch.isfinite(whitening(torch.zeros(3, 3, dtype=torch.float64)).float()).all()


def test_the_loss_weighs_classes_alike(fitted, images):
    kind, head = fitted
    tiles = torch.from_numpy(images)
    torch.manual_seed(5)
    pasted, labels = kind.pasted(tiles)
    with torch.no_grad():
        vectors = described(head, kind.extract(pasted)[0])
    logits = vectors @ head.classify.weight[:, :, 0, 0].detach().double().numpy().T
    logits += head.classify.bias.detach().numpy()
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    flat = labels.flatten().numpy()
    expected = np.mean([-logarithms[flat == each, each].mean() for each in range(3)])
    torch.manual_seed(5)
    assert kind.loss(head, kind.drawn((tiles,))).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("variant", "kinds"), [("3way", {0, 1, 2}), ("patch", {0, 1}), ("scar", {0, 1})])
def test_a_position_has_the_class_of_what_was_pasted_there(images, variant, kinds):
    kind = model(variant=variant)
    tiles = torch.from_numpy(images)
    torch.manual_seed(1)
    pasted, labels = kind.pasted(tiles)
    assert labels.shape == (8, 8, 12)
    assert set(labels.unique().tolist()) == kinds
    changed = (pasted != tiles).any(3).reshape(8, 8, 8, 12, 8).any(4).any(2)
    assert (labels[changed] > 0).all()
    # A piece is as bright as where it comes from, within a tenth: few of its pixels look as before
    assert (changed[labels > 0]).float().mean() > 0.9
    assert kind.new_head().classify.out_channels == len(kinds)


def test_the_second_class_of_the_scar_variant_is_a_scar(monkeypatch, images):
    asked = []
    from edge_ad.methods import cutpaste

    draw = cutpaste.draw_pastes
    monkeypatch.setattr(cutpaste, "draw_pastes", lambda kinds, size: asked.append(kinds) or draw(kinds, size))
    model(variant="scar").pasted(torch.from_numpy(images))
    assert set(asked[0].unique().tolist()) == {Paste.NONE, Paste.SCAR}
    assert asked[0].shape == (8, 1, 2)  # patches of about 64 pixels


def test_the_gaussian_is_fitted_anew_on_other_features(fitted, images):
    kind, head = fitted

    def doubled(image):
        return [2 * feature for feature in kind.extract(image)]

    adapted = kind.adapt(head, stream(kind, images, doubled), seed=2)
    normal = described(head, doubled(torch.from_numpy(images))[0])
    np.testing.assert_allclose(adapted.mean.numpy(), normal.mean(0), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(adapted.project.parameters(), head.project.parameters(), strict=True))
    same = kind.adapt(head, stream(kind, images), seed=2)
    torch.testing.assert_close(same.whitening.T @ same.whitening, head.whitening.T @ head.whitening, rtol=1e-2, atol=1)


def test_training_tells_pastes_apart(images):
    kind = model(steps=40, batch_size=4)
    kind.fit(stream(kind, images), seed=0)
    assert np.mean(kind.losses[0].training[-10:]) < 0.95 * np.log(3)  # log 3: three classes at random


def test_bad_input():
    with pytest.raises(InputError, match="cutpaste has no variant '4way'; it has 3way, patch, scar"):
        model(variant="4way")
