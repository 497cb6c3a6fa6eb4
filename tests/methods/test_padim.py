"""PaDiM against the textbook: numpy covariances, matrix inverses, scipy's Gaussian, torch's own upsampling."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from edge_ad.errors import BackboneError, InputError, NonFiniteValuesError, TooFewImagesError
from edge_ad.methods import create_model
from edge_ad.methods.padim import REGULARISATION, deflate, eigh
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

GRID = TileGrid((64, 96), (32, 48), (32, 48))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("padim", GRID.tile_size, backbone="resnet18", weights="none", dimensions=11)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 96, 3), np.uint8)


def stream(model, images, batch_size=3, locations=(Location(1, 0),)):
    return TileStream(images, GRID, locations, model.extract, batch_size)


def test_distance_is_the_mahalanobis_distance(model, images):
    head = model.fit(stream(model, images), seed=0)
    rows, cols = GRID.window(Location(1, 0))
    x = model.extract(torch.from_numpy(images[:, rows, cols].copy()))[0].numpy().astype(np.float64)
    probe = model.extract(torch.from_numpy(255 - images[:2, rows, cols]))[0]
    expected = np.empty((2, *model.positions))
    for i, j in np.ndindex(*model.positions):
        mean, covariance = x[:, i, j].mean(0), np.cov(x[:, i, j].T) + REGULARISATION * np.eye(11)
        y = probe[:, i, j].numpy() - mean
        expected[:, i, j] = np.sqrt(np.einsum("nd,de,ne->n", y, np.linalg.inv(covariance), y))
    expected = np.stack(
        [
            scipy.ndimage.gaussian_filter(
                F.interpolate(torch.from_numpy(m)[None, None], size=GRID.tile_size, mode="bilinear")[0, 0].numpy(), 4.0
            )
            for m in expected
        ]
    )
    with torch.no_grad():
        anomaly_map, score = head(probe)
    # float32 against float64 through w|y|^2 - |By|^2: 1e-5 measured, 1e-3 allowed
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2)), rtol=1e-3)


def test_the_batch_size_does_not_matter(model, images):
    one, all_at_once = model.fit(stream(model, images, 1), seed=0), model.fit(stream(model, images, 7), seed=0)
    torch.testing.assert_close(one.mean, all_at_once.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.gain, all_at_once.gain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("samples", "rank"), [(5, 4), (40, 12)])
def test_deflation_is_exact(samples, rank):
    rng = np.random.default_rng(0)
    covariance = np.stack([np.cov(rng.normal(size=(13, samples))) for _ in range(3)])
    gain, directions = (value.numpy() for value in deflate(torch.from_numpy(covariance), rank))
    inverse = gain[:, None, None] ** 2 * (np.eye(13) - directions.swapaxes(1, 2) @ directions)
    np.testing.assert_allclose(inverse, np.linalg.inv(covariance + REGULARISATION * np.eye(13)), atol=2e-3)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_eigenvalues_of_a_stack_are_those_of_each(count):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(count, 5, 9)))
    values, vectors = eigh(x @ x.transpose(1, 2))
    for matrix, own, basis in zip(x @ x.transpose(1, 2), values, vectors, strict=True):
        np.testing.assert_allclose(own, np.linalg.eigvalsh(matrix), rtol=1e-12)
        torch.testing.assert_close(basis @ own.diag() @ basis.T, matrix)


def test_a_covariance_that_the_float32_solver_gives_up_on_goes_to_float64(monkeypatch):
    covariance = torch.from_numpy(np.cov(np.random.default_rng(0).normal(size=(13, 9))))[None]
    covariance[:, 4:] = covariance[..., 4:] = 0  # dead channels
    expected, eigh = deflate(covariance, 4), torch.linalg.eigh

    def give_up(values):
        if values.dtype is torch.float32:
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(values)

    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    gain, directions = deflate(covariance, 4)
    assert gain.dtype is directions.dtype is torch.float32
    torch.testing.assert_close(gain, expected[0])
    torch.testing.assert_close(directions.mT @ directions, expected[1].mT @ expected[1], atol=1e-5, rtol=0)


def test_a_lower_rank_levels_the_smallest_eigenvalues():
    rng = np.random.default_rng(0)
    covariance = np.cov(rng.normal(size=(13, 40)))
    values, vectors = np.linalg.eigh(covariance + REGULARISATION * np.eye(13))
    values[:8] = values[:8].mean()
    gain, directions = (value[0].numpy() for value in deflate(torch.from_numpy(covariance[None]), 5))
    inverse = gain**2 * (np.eye(13) - directions.T @ directions)
    np.testing.assert_allclose(inverse, vectors @ np.diag(1 / values) @ vectors.T, atol=1e-4)


@torch.no_grad()
def test_in_int8_it_is_the_distance_of_a_point_close_by(model, images):
    """Rounded by hand, then the exact head: what the rows of B lose to eight bits moves it by 1.5 % at most."""
    head = model.fit(stream(model, images), seed=0)
    embedding = model.extract(torch.from_numpy(images[:4, 32:, :48].copy()))[0]
    unit = head.deviations()
    centred = (embedding.flatten(1, 2) - head.mean) / unit
    step = centred.abs().amax(2, keepdim=True) / 127 * unit
    steps = ((embedding.flatten(1, 2) - head.mean) / step).round()
    expected = head((head.mean + steps * step).reshape(embedding.shape))[0]
    found = model.in_int8(head)(embedding)[0]
    assert ((found - expected).abs() / expected).max() < 0.02
    assert not torch.equal(found, expected)


@torch.no_grad()
def test_deviations_are_those_of_the_features(model, images):
    head = model.fit(stream(model, images), seed=0)
    embedding = model.extract(torch.from_numpy(images[:, 32:, :48].copy()))[0].flatten(1, 2)
    expected = (embedding.var(0) + REGULARISATION).sqrt()
    torch.testing.assert_close(head.deviations(), expected, rtol=1e-3, atol=0)


@torch.no_grad()
def test_in_int8_nothing_saturates(model, images):
    head = model.fit(stream(model, images), seed=0)
    in_int8, way = model.in_int8(head), torch.randn(head.mean.shape, generator=torch.Generator().manual_seed(0))
    near, far = (in_int8((head.mean + times * way).reshape(1, *model.positions, -1))[0] for times in (1, 1000))
    torch.testing.assert_close(far, 1000 * near, rtol=1e-3, atol=0)
    at_the_mean, score = in_int8(head.mean.reshape(1, *model.positions, -1))
    assert at_the_mean.abs().max() == score == 0


def test_rank_is_what_the_tiles_can_span(model, images):
    assert model.fit(stream(model, images), seed=0).directions.shape == (8 * 12, 6, 11)
    many = stream(model, images, locations=GRID.locations)  # 28 tiles
    assert model.fit(many, seed=0).directions.shape == (8 * 12, 10, 11)
    low = create_model("padim", GRID.tile_size, backbone="resnet18", weights="none", dimensions=11, rank=4)
    assert low.fit(stream(low, images, locations=GRID.locations), seed=0).directions.shape == (8 * 12, 4, 11)


def test_a_planted_defect_scores_higher(model):
    rng = np.random.default_rng(1)
    texture = rng.integers(0, 256, (64, 96, 3))
    normal = np.clip(texture + rng.normal(0, 4, (20, 64, 96, 3)), 0, 255).astype(np.uint8)
    defective = normal[16:].copy()
    defective[:, 40:50, 10:20] = 255
    head = model.fit(stream(model, normal[:16]), seed=0)
    rows, cols = GRID.window(Location(1, 0))
    scores = [head(*model.extract(torch.from_numpy(x[:, rows, cols].copy())))[1] for x in (normal[16:], defective)]
    assert scores[0].max() < scores[1].min()


def test_a_head_comes_back_bit_for_bit(model, images):
    head = model.fit(stream(model, images), seed=0)
    again = model.head_from_state(head.state_dict())
    probe = torch.rand(2, 8, 12, 11)
    for a, b in zip(head(probe), again(probe), strict=True):
        assert torch.equal(a, b)


def test_the_seed_chooses_the_channels():
    models = [
        create_model("padim", (32, 32), backbone="resnet18", weights="none", dimensions=50, seed=seed)
        for seed in (1, 1, 2)
    ]
    buffers = [torch.cat([b + i * 1000 for i, b in enumerate(_channels(m))]) for m in models]
    assert torch.equal(buffers[0], buffers[1])
    assert not torch.equal(buffers[0], buffers[2])


def _channels(model):
    return [choice[..., 0, 0].argmax(1) for choice in model.extractor.choices]


def test_a_layer_of_which_no_channel_is_drawn():
    seeds = (
        create_model("padim", (32, 48), weights="none", backbone="resnet18", dimensions=2, seed=s) for s in range(99)
    )
    bare = next(model for model in seeds if not len(model.extractor.choices[0]))
    assert bare.extract(torch.zeros(1, 32, 48, 3, dtype=torch.uint8))[0].shape == (1, 8, 12, 2)


def test_the_embedding_replicates_deeper_maps(model):
    image = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    maps = model.extractor.backbone(image)
    whole = torch.cat([m.repeat_interleave(8 // m.shape[2], 2).repeat_interleave(12 // m.shape[3], 3) for m in maps], 1)
    starts = np.cumsum([0, 64, 128])
    index = torch.cat([c + int(s) for c, s in zip(_channels(model), starts, strict=True)])
    assert torch.equal(model.extract(image)[0], whole[:, index].permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("source", "target", "sigma"), [((5, 7), (20, 21), 4.0), ((16, 16), (16, 16), 1.0), ((3, 4), (12, 16), 0)]
)
def test_upsample_smooth_is_interpolate_then_gaussian(source, target, sigma):
    maps = torch.rand(2, 1, *source)
    expected = F.interpolate(maps, size=target, mode="bilinear", align_corners=False).numpy()
    if sigma:
        expected = scipy.ndimage.gaussian_filter(expected, (0, 0, sigma, sigma))
    np.testing.assert_allclose(UpsampleSmooth(source, target, sigma)(maps).numpy(), expected, atol=1e-6)


def test_errors(model, images):
    with pytest.raises(TooFewImagesError, match="padim needs at least 2 training tiles per model, but got 1"):
        model.fit(stream(model, images[:1]), seed=0)
    broken = TileStream(images, GRID, GRID.locations, lambda image: (torch.full((len(image), 11, 8, 12), torch.nan),))
    with pytest.raises(NonFiniteValuesError, match="NaN or infinite"):
        model.fit(broken, seed=0)
    with pytest.raises(BackboneError, match=r"has no module layer9; it has act1 \(stride 2\), layer1 \(stride 4\)"):
        create_model("padim", (32, 32), backbone="resnet18", weights="none", layers=("layer1", "layer9"))
    with pytest.raises(BackboneError, match="backbone 'resnet99' cannot be built"):
        create_model("padim", (32, 32), backbone="resnet99", weights="none")
    with pytest.raises(BackboneError, match="tile size 40x32 is no multiple of the stride 16"):
        create_model("padim", (40, 32), backbone="resnet18", weights="none")
    with pytest.raises(InputError, match="expected dimensions >= 2 and rank >= 1, but got 100 and 0"):
        create_model("padim", (32, 32), backbone="resnet18", weights="none", rank=0)
    with pytest.raises(InputError, match="unknown method 'padme'; known: padim"):
        create_model("padme", (32, 32))
