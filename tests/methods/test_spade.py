"""SPADE against scipy's distances, scipy's Gaussian and torch's own upsampling; small cases by hand."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist

from edge_ad.errors import BackboneError, InputError
from edge_ad.methods import create_model
from edge_ad.methods.parts.coreset import farthest_points
from edge_ad.methods.spade import SpadeHead
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import WHOLE, Location, TileGrid

GRID = TileGrid((64, 96), (32, 48), (32, 48))


def model(**config):
    torch.manual_seed(0)
    return create_model("spade", GRID.tile_size, backbone="resnet18", weights="none", **config)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 96, 3), np.uint8)


def stream(kind, images, batch_size=3, extract=None):
    return TileStream(images, GRID, (Location(1, 0),), extract or kind.extract, batch_size)


def features_of(kind, images):
    rows, cols = GRID.window(Location(1, 0))
    return kind.extract(torch.from_numpy(images[:, rows, cols].copy()))


def on_a_line(queries, values, neighbours, *, map_score=False):
    """A head of one layer: tiles of 1 x 1 positions and one channel, whose queries are numbers too."""
    head = SpadeHead(len(queries), neighbours, [1], [(1, 1)], 1, (8, 8), map_score=map_score)
    head.queries.copy_(torch.tensor(queries)[:, None])
    head.gallery_0.copy_(torch.tensor(values)[:, None, None])
    return head.eval()


@torch.no_grad()
@pytest.mark.parametrize("map_score", [False, True])
def test_map_and_score_are_those_of_the_paper(images, map_score):
    kind = model(layers=("layer1", "layer2", "layer3"), neighbours=3, map_score=map_score)
    head = kind.fit(stream(kind, images), seed=0)
    probe = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3), np.uint8)
    remembered = [value.double().numpy() for value in features_of(kind, images)]
    asked = [value.double().numpy() for value in features_of(kind, probe)]
    anomaly_map, score = head(*features_of(kind, probe))
    for index in range(len(probe)):
        distances = cdist(asked[-1][index : index + 1].mean((2, 3)), remembered[-1].mean((2, 3)))[0]
        nearest = distances.argsort()[:3]
        levels = []
        for mine, theirs in zip(asked[:-1], remembered[:-1], strict=True):
            channels, *size = mine.shape[1:]
            gallery = theirs[nearest].transpose(0, 2, 3, 1).reshape(-1, channels)
            level = cdist(mine[index].reshape(channels, -1).T, gallery).min(1).reshape(1, 1, *size)
            levels.append(F.interpolate(torch.from_numpy(level), size=GRID.tile_size, mode="bilinear")[0, 0].numpy())
        expected = scipy.ndimage.gaussian_filter(np.mean(levels, axis=0), 4.0)
        # What is remembered is rounded to half precision: 2e-4 measured, 2e-3 allowed
        np.testing.assert_allclose(anomaly_map[index, 0].numpy(), expected, rtol=2e-3)
        wanted = expected.max() if map_score else distances[nearest].mean()
        np.testing.assert_allclose(score[index].item(), wanted, rtol=2e-3)


@torch.no_grad()
def test_only_tiles_retrieved_are_compared():
    # Asked at 1, tiles 0 and 2 are nearest (1 and 2 away). The position at 7.5 is 2.5 and 1.5 from theirs; the value of
    # tile 1, at 7, would be 0.5 away.
    head = on_a_line([0.0, 10.0, 3.0], [5.0, 7.0, 9.0], neighbours=2)
    anomaly_map, score = head(torch.tensor([[[[7.5]]]]), torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2))
    assert score.item() == pytest.approx(1.5)
    np.testing.assert_allclose(anomaly_map.numpy(), 1.5, rtol=1e-5)
    # In a batch every tile has neighbours of its own: at 9, tiles 1 and 2, 1 and 6 away
    anomaly_map, score = head(torch.full((2, 1, 1, 1), 7.5), torch.tensor([1.0, 9.0]).reshape(2, 1, 1, 1))
    assert score.tolist() == pytest.approx([1.5, 3.5])
    np.testing.assert_allclose(anomaly_map.amax((1, 2, 3)).numpy(), [1.5, 0.5], rtol=1e-5)


@torch.no_grad()
def test_a_remembered_tile_is_at_no_distance(images):
    kind = model(neighbours=1)
    head = kind.fit(stream(kind, images), seed=0)
    others = features_of(kind, 255 - images)
    anomaly_map, score = head(*features_of(kind, images))
    assert anomaly_map.max() < 0.02 * head(*others)[0].max()  # rounding to half precision
    assert score.max() < 0.02 * head(*others)[1].max()


@torch.no_grad()
def test_a_common_offset_costs_no_digits(images):
    kind = model()

    def shifted(image):
        *maps, deepest = kind.extract(image)
        return [*(value + 1000 for value in maps), deepest]

    head, moved = kind.fit(stream(kind, images), 0), kind.fit(stream(kind, images, extract=shifted), 0)
    *maps, deepest = features_of(kind, 255 - images[:2])
    expected = head(*maps, deepest)[0]
    # Features near 1000 are themselves rounded by 6e-5
    torch.testing.assert_close(moved(*(value + 1000 for value in maps), deepest)[0], expected, rtol=5e-3, atol=0)


@torch.no_grad()
def test_the_gallery_is_the_coreset_of_the_tiles(images):
    kind = model(gallery=3)
    head = kind.fit(stream(kind, images), seed=4)
    *maps, deepest = features_of(kind, images)
    queries = deepest.mean((2, 3))
    first = int(torch.randint(7, (1,), generator=torch.Generator().manual_seed(4)))
    assert head.chosen.tolist() == farthest_points(queries, 3, first).tolist()
    np.testing.assert_allclose(head.queries.numpy(), queries[head.chosen].numpy(), rtol=1e-3, atol=1e-3)
    for index, values in enumerate(maps):
        stored = getattr(head, f"gallery_{index}").float() + getattr(head, f"centre_{index}")
        np.testing.assert_allclose(stored.numpy(), values[head.chosen].flatten(2).numpy(), rtol=1e-3, atol=1e-2)
    assert model(gallery=7).fit(stream(kind, images), 4).chosen.tolist() == list(range(7))
    firsts = {model(gallery=3).fit(stream(kind, images), seed).chosen[0].item() for seed in range(6)}
    assert len(firsts) > 1


@torch.no_grad()
def test_a_refit_keeps_the_tiles_and_takes_their_new_features(images):
    kind = model(gallery=3)
    head = kind.fit(stream(kind, images), seed=0)

    def doubled(image):
        return [2 * feature for feature in kind.extract(image)]

    other = kind.refit(head, stream(kind, images, extract=doubled), seed=9)
    assert torch.equal(other.chosen, head.chosen)
    torch.testing.assert_close(other.queries.float(), 2 * head.queries.float(), rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(other.gallery_1.float(), 2 * head.gallery_1.float(), rtol=2e-3, atol=1e-3)


def test_the_stride_of_the_deepest_layer_need_not_divide_the_tile():
    kind = model()
    assert kind.feature_names == ("feature_0", "feature_1", "feature_2")
    image = torch.zeros(2, 32, 48, 3, dtype=torch.uint8)
    assert [tuple(value.shape) for value in kind.extract(image)] == [(2, 128, 4, 6), (2, 256, 2, 3), (2, 512, 1, 2)]
    with pytest.raises(BackboneError, match="tile size 32x48 is no multiple of the stride 32"):
        kind.extractor.map_sizes((32, 48))
    with pytest.raises(BackboneError, match="tile size 24x48 is no multiple of the stride 16"):
        create_model("spade", (24, 48), backbone="resnet18", weights="none")


def test_fewer_tiles_than_neighbours(images):
    kind = model(neighbours=5)
    head = kind.fit(stream(kind, images[:2]), seed=0)
    assert head.neighbours == 2
    assert all(torch.isfinite(value).all() for value in head(*features_of(kind, images[2:])))


def test_errors():
    with pytest.raises(InputError, match="expected gallery >= 1 and neighbours >= 1, but got 0 and 5"):
        model(gallery=0)
    with pytest.raises(InputError, match="but got 100 and 0"):
        model(neighbours=0)
    with pytest.raises(BackboneError, match="retrieves by a deeper one, but got only layer2"):
        model(layers=("layer2",))


@torch.no_grad()
def test_a_global_model_scores_by_retrieval_and_stays_so(images):
    kind = model(neighbours=3)
    stream_of_whole = TileStream(images, GRID, (WHOLE,), kind.extract, 3)
    head = kind.fit(stream_of_whole, seed=0)
    features = kind.extract(torch.from_numpy(stream_of_whole.cut([2, 5])) // 2)
    anomaly_map, score = head(*features)
    wanted = head.retrieve(features[-1].mean((2, 3)))[0].mean(1)
    torch.testing.assert_close(score, wanted)
    assert not torch.allclose(score, anomaly_map.amax((1, 2, 3)))
    for again in (kind.head_from_state(head.state_dict()), kind.refit(head, stream_of_whole, seed=0)):
        torch.testing.assert_close(again(*features)[1], wanted)
    # Heads stored before they knew how they score do as the model says
    old = {key: value for key, value in head.state_dict().items() if key != "by_map"}
    torch.testing.assert_close(kind.head_from_state(old)(*features)[1], anomaly_map.amax((1, 2, 3)))
