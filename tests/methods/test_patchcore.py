"""PatchCore against scipy's distances, eq. 7 written out, scipy's Gaussian and torch's own pooling."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from edge_ad.errors import BackboneError, CoresetSizeError
from edge_ad.methods import create_model
from edge_ad.methods.head_inputs import HeadInputs
from edge_ad.methods.parts.coreset import farthest_points
from edge_ad.methods.patchcore import PatchcoreHead, PatchcoreInt8Head, bank_state, nearest_in_bank
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

GRID = TileGrid((64, 96), (32, 48), (32, 48))


def model(**config):
    torch.manual_seed(0)
    return create_model("patchcore", GRID.tile_size, backbone="resnet18", weights="none", **config)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 96, 3), np.uint8)


def stream(kind, images, batch_size=3):
    return TileStream(images, GRID, (Location(1, 0),), kind.extract, batch_size)


def head_with(vectors, positions=(1, 1), tile_size=(8, 8)):
    state = bank_state(torch.as_tensor(vectors, dtype=torch.float32))
    head = PatchcoreHead(positions, len(vectors[0]), *state["neighbours"].shape, tile_size)
    head.load_state_dict(state)
    return head.eval()


def vectors_of(head):
    return (head.bank[:, :-2] + head.centre).double().numpy()


@torch.no_grad()
def test_map_and_score_are_those_of_the_paper(images):
    kind = model(coreset_ratio=0.3)
    head = kind.fit(stream(kind, images), seed=0)
    rows, cols = GRID.window(Location(1, 0))
    embedding = kind.extract(torch.from_numpy(255 - images[:3, rows, cols]))[0]
    bank, b = vectors_of(head), 9
    maps, scores = [], []
    for patches in embedding.flatten(1, 2).double().numpy():
        distances = cdist(patches, bank)
        nearest = distances.min(1)
        top = nearest.argmax()
        near_bank = cdist(bank[[distances[top].argmin()]], bank)[0].argsort()[:b]
        share = math.exp(nearest[top]) / sum(math.exp(d) for d in distances[top][near_bank])
        scores.append((1 - share) * nearest[top])
        upsampled = F.interpolate(torch.from_numpy(nearest).reshape(1, 1, 4, 6), size=(32, 48), mode="bilinear")
        maps.append(scipy.ndimage.gaussian_filter(upsampled[0, 0].numpy(), 4.0))
    anomaly_map, score = head(embedding)
    # float32 against float64: 2e-6 measured, 1e-4 allowed
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), maps, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), scores, rtol=1e-4)


@torch.no_grad()
def test_in_int8_distances_are_those_of_the_rounded_vectors(images):
    kind = model(coreset_ratio=0.3)
    head = kind.fit(stream(kind, images), seed=0)
    rows, cols = GRID.window(Location(1, 0))
    embedding = kind.extract(torch.from_numpy(255 - images[:3, rows, cols]))[0]
    centre, vectors = head.centre.double().numpy(), head.bank[:, :-2].double().numpy()
    step = np.ptp(vectors) / 255
    lowest = np.rint(vectors.min() / step)
    largest = np.abs(vectors).max(1, keepdims=True)
    stored = (largest / 127 * 128).astype(np.float16) / np.float64(128)  # a step as a bundle has it
    bank, maps, scores = np.rint(vectors / largest * 127) * stored, [], []
    for patches in embedding.flatten(1, 2).double().numpy() - centre:
        near = np.rint(patches / step).clip(lowest, lowest + 255) * step
        distances = np.sqrt(cdist(near, bank) ** 2 + ((patches - near) ** 2).sum(1, keepdims=True))
        nearest = distances.min(1)
        top = nearest.argmax()
        near_bank = cdist(vectors[[distances[top].argmin()]], vectors)[0].argsort()[:9]
        scores.append((1 - scipy.special.softmax(distances[top][near_bank])[0]) * nearest[top])
        maps.append(kind.in_int8(head).upsample(torch.from_numpy(nearest).float().reshape(1, 1, 4, 6))[0, 0].numpy())
    anomaly_map, score = kind.in_int8(head)(embedding)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), maps, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), scores, rtol=1e-4)
    exact_map, exact_score = head(embedding)
    assert 1e-5 < ((anomaly_map - exact_map).abs() / exact_map).max() < 0.01
    assert ((score - exact_score).abs() / exact_score).max() < 0.01


@torch.no_grad()
def test_in_int8_a_distance_is_off_by_no_more_than_its_ends_are_moved():
    """Far from the mean but near each other, where a product of rounded numbers alone would be off by far more."""
    generator = torch.Generator().manual_seed(0)
    far = 5 * torch.randn(2, 1, 32, generator=generator)
    bank = far.flatten(0, 1).repeat(20, 1) + torch.randn(40, 32, generator=generator) / 2
    head = head_with(bank, (3, 4), (24, 32))
    patches = bank[:24].reshape(2, 3, 4, 32) + torch.randn(2, 3, 4, 32, generator=generator) / 4
    moved = math.sqrt(32) / 2 * (np.ptp(head.bank[:, :-2].numpy()) / 255 + head.bank[:, :-2].abs().amax(1).max() / 127)
    found, expected = PatchcoreInt8Head(head)(patches)[0], head(patches)[0]  # smoothing averages
    assert 0 < (found - expected).abs().max() < moved
    assert moved < expected.min() / 2


@torch.no_grad()
def test_in_int8_the_weight_by_hand():
    # Bank -2, -1 and 3 at 51 steps each, the patch at 20 steps: nothing is rounded
    unit = 127 / 128
    head = PatchcoreInt8Head(head_with([[3 * unit], [-unit], [-2 * unit]]))
    distances = [71 / 51 * unit, 122 / 51 * unit, 133 / 51 * unit]
    share = math.exp(distances[0]) / sum(map(math.exp, distances))
    score = head(torch.full((1, 1, 1, 1), 20 / 51 * unit))[1].item()
    assert score == pytest.approx((1 - share) * distances[0], rel=1e-5)


@pytest.mark.parametrize("times", [1.1, 3, 1000])
@torch.no_grad()
def test_in_int8_what_exceeds_the_range_still_counts(times):
    """At right angles, or along: between 0.7 of the distance and all of it."""
    generator = torch.Generator().manual_seed(0)
    head = head_with(torch.randn(30, 16, generator=generator), (5, 5), (40, 40))
    way = torch.randn(1, 5, 5, 16, generator=generator)
    way = way / way.abs().amax(3, keepdim=True) * head.bank[:, :-2].abs().max() * times
    ratio = PatchcoreInt8Head(head)(way + head.centre)[0] / head(way + head.centre)[0]
    assert ratio.min() > 0.7
    assert ratio.max() < 1.01


@torch.no_grad()
def test_in_int8_a_bank_of_equal_vectors():
    head = PatchcoreInt8Head(head_with([[2.0, 3.0], [2.0, 3.0]]))
    anomaly_map, score = head(torch.tensor([2.0, 5.0]).reshape(1, 1, 1, 2))
    assert 1.4 < anomaly_map.min() <= anomaly_map.max() < 2.01
    assert 0.7 < score.item() < 1.01  # the shares are 1/2 and 1/2


@torch.no_grad()
def test_the_weight_by_hand():
    # Bank 0, 3, 7 on a line, b = 3; the patch at 9 is 2, 6 and 9 away: s = (1 - e^2 / (e^2 + e^6 + e^9)) 2
    head = head_with([[0.0], [3.0], [7.0]])
    share = math.exp(2) / (math.exp(2) + math.exp(6) + math.exp(9))
    assert head(torch.tensor([[[[9.0]]]]))[1].item() == pytest.approx((1 - share) * 2, rel=1e-5)


@torch.no_grad()
def test_the_weight_of_large_distances_does_not_overflow():
    # exp(2000) is no float; the shares are 1/2 and 1/2
    head = head_with([[0.0, 0.0], [0.0, 1.0]])
    score = head(torch.tensor([2000.0, 0.5]).reshape(1, 1, 1, 2))[1].item()
    assert score == pytest.approx(0.5 * math.hypot(2000, 0.5), rel=1e-5)


@torch.no_grad()
def test_a_remembered_patch_is_at_no_distance():
    vectors = np.random.default_rng(0).normal(50, 1, (200, 64)).astype(np.float32)
    head = head_with(vectors, (10, 20), (80, 160))
    anomaly_map, score = head(torch.from_numpy(vectors.reshape(1, 10, 20, 64)))
    # Without the centre, rounding of |x|^2 = 160000 alone is a distance of 0.1
    assert anomaly_map.max() < 0.01
    assert score < 0.01


def test_half_precision_storage_keeps_the_squares():
    state = bank_state(torch.from_numpy(np.random.default_rng(0).normal(0, 5, (50, 300)).astype(np.float32)))
    vectors, stored = state["bank"][:, :-2].double(), state["bank"][:, -2:].half().double()
    np.testing.assert_allclose(stored.sum(1), -(vectors**2).sum(1) / 2, rtol=1e-6)


def test_neighbours_within_the_bank():
    bank = np.random.default_rng(0).normal(size=(1500, 5)).astype(np.float32)  # more than one block of rows
    expected = cdist(bank, bank).argsort(1)[:, :9]
    assert np.array_equal(nearest_in_bank(torch.from_numpy(bank), 9).numpy(), expected)
    twins = np.repeat(bank[:3], 4, axis=0)
    assert nearest_in_bank(torch.from_numpy(twins), 4)[:, 0].tolist() == list(range(12))


@torch.no_grad()
def test_the_embedding_averages_neighbourhoods():
    kind = model()
    image = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    layer2, layer3 = kind.extractor.backbone(image)
    kernel = torch.full((1, 1, 3, 3), 1 / 9)  # zeros outside count

    def averaged(maps):
        return F.conv2d(maps.flatten(0, 1)[:, None], kernel, padding=1).reshape(maps.shape)

    expected = torch.cat([averaged(layer2), F.interpolate(averaged(layer3), scale_factor=2, mode="bilinear")], dim=1)
    assert expected.shape == (2, 128 + 256, 4, 6)
    torch.testing.assert_close(kind.extract(image)[0], expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_bank_is_the_coreset_of_all_patches(images, monkeypatch):
    monkeypatch.setattr("edge_ad.methods.patchcore.random_projection", lambda dimensions, generator: torch.eye(384))
    kind = model(bank_size=31)
    head = kind.fit(stream(kind, images, 2), seed=4)
    patches = torch.cat([part.flatten(0, 2) for (part,) in stream(kind, images, 7)])
    first = int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(4)))
    expected = patches[farthest_points(patches, 31, first)]
    np.testing.assert_allclose(vectors_of(head), expected.numpy(), atol=1e-4)


def test_features_too_large_to_hold_are_extracted_twice(images, monkeypatch):
    kind = model(bank_size=31)
    held = kind.fit(stream(kind, images), seed=0)
    monkeypatch.setattr("edge_ad.methods.patchcore.HeadInputs", partial(HeadInputs, budget_bytes=0))
    again = kind.fit(stream(kind, images), seed=0)
    assert torch.equal(held.bank, again.bank)


def test_a_refit_keeps_the_patches_and_takes_their_new_features(images):
    kind = model(bank_size=31)
    head = kind.fit(stream(kind, images), seed=0)
    same = kind.refit(head, stream(kind, images, 2), seed=9)
    # Another batch size is another order of sums in the extractor
    torch.testing.assert_close(same.bank, head.bank, rtol=1e-4, atol=1e-4)
    assert torch.equal(same.chosen, head.chosen)

    def doubled(image):
        return [2 * feature for feature in kind.extract(image)]

    tiles = stream(kind, images)
    other = kind.refit(head, TileStream(images, tiles.grid, tiles.locations, doubled, 3), seed=9)
    np.testing.assert_allclose(vectors_of(other), 2 * vectors_of(head), rtol=1e-5, atol=1e-5)


def test_the_seed_draws_the_first_patch(images):
    kind = model(bank_size=31)
    banks = [kind.fit(stream(kind, images), seed=seed).bank for seed in (0, 0, 1)]
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_errors(images):
    kind = model(bank_size=169)
    with pytest.raises(CoresetSizeError, match="a bank of 169 vectors is larger than the 168 patches of 7 tr"):
        kind.fit(stream(kind, images), seed=0)
    with pytest.raises(CoresetSizeError, match=r"coreset_ratio: expected more than 0 and at most 1, but got 1\.5"):
        model(coreset_ratio=1.5)
    with pytest.raises(CoresetSizeError, match="bank_size: expected at least 2 vectors, but got 1"):
        model(bank_size=1)
    with pytest.raises(BackboneError, match="has no module layer9; it has act1"):
        model(layers=("layer9",))
