"""EfficientAD: losses and map against plain formulas, and what is measured rather than trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import scene, tile_setup

from edge_ad.errors import EmptyDataError, TooFewImagesError, WeightsNotFoundError
from edge_ad.methods import create_model
from edge_ad.methods.efficient_ad import hard_loss
from edge_ad.methods.parts import pdn
from edge_ad.methods.parts.autoencoder import Autoencoder
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location

TILE = (64, 48)
SETUP = tile_setup(TILE, TILE)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    layers = (pdn.Layer(4, 8, pooled=True), pdn.Layer(4, 12, pooled=True), pdn.Layer(3, 12), pdn.Layer(4, 10))
    monkeypatch.setitem(pdn.SIZES, "tiny", layers)


def model(**parameters):
    torch.manual_seed(0)
    given = {"size": "tiny", "weights": "none", "steps": 6, "batch_size": 2, "learning_rate": 1e-3}
    made = create_model("efficient_ad", TILE, **(given | parameters))
    *_, last = (module for module in made.teacher.modules() if isinstance(module, torch.nn.Conv2d))
    with torch.no_grad():
        for values in last.parameters():
            values.mul_(10)  # as far apart as a distilled teacher's
    return made


def stream(efficient_ad, count=10, extract=None):
    tiles = scene(count, TILE)
    return TileStream(tiles, SETUP.grid, (Location(0, 0),), extract or efficient_ad.extract, with_image=True)


def test_parameters_and_operations_of_the_paper():
    """Of the three networks at 256 px without mirroring: 8.06 and 20.74 million; 37.95 and 117.71 billion products."""
    from torch.utils.flop_counter import FlopCounterMode

    for size, parameters, products in (("s", 8_057_856, 37.95e9), ("m", 20_738_432, 117.71e9)):
        with torch.device("meta"):
            layers = pdn.layers_of(size)
            networks = [
                pdn.PatchDescription(layers, mirror=False),
                pdn.PatchDescription(layers, widen=2, mirror=False),
                Autoencoder((256, 256), 384, (56, 56)),
            ]
            with FlopCounterMode(display=False) as counter:
                for network in networks:
                    network(torch.zeros(1, 3, 256, 256))
        assert sum(value.numel() for network in networks for value in network.parameters()) == parameters
        assert counter.get_total_flops() / 2 == pytest.approx(products, rel=1e-3)


def test_hard_loss_is_the_mean_above_the_quantile():
    torch.manual_seed(0)
    teacher, student = torch.randn(1, 10, 40, 50), torch.randn(1, 10, 40, 50)
    squares = (teacher - student) ** 2
    expected = squares[squares >= squares.quantile(0.999)].mean()
    assert hard_loss(teacher, student) == pytest.approx(float(expected), rel=1e-5)
    assert hard_loss(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)) == 9  # never of nothing


def test_the_map_is_the_papers():
    efficient_ad = model()
    head = efficient_ad.new_head().eval()
    with torch.no_grad():
        head.teacher_mean.normal_()
        head.teacher_std.uniform_(0.5, 2)
        head.low.copy_(torch.tensor([0.1, 0.2]).view(1, 2, 1, 1))
        head.gain.copy_(torch.tensor([3.0, 5.0]).view(1, 2, 1, 1))
        image = torch.from_numpy(scene(2, TILE))
        (teacher,) = efficient_ad.extract(image)
        anomaly_map, score = head(image, teacher)
        scaled = (image.permute(0, 3, 1, 2) / 255 - head.mean) / head.std
        student, autoencoder = head.student(scaled), head.autoencoder(scaled)
    normalised = ((teacher - head.teacher_mean) / head.teacher_std).double().numpy()
    of_teacher, of_autoencoder = student[:, :10].double().numpy(), student[:, 10:].double().numpy()
    first = ((normalised - of_teacher) ** 2).mean(1)
    second = ((autoencoder.double().numpy() - of_autoencoder) ** 2).mean(1)
    combined = 0.5 * ((first - 0.1) * 3 + (second - 0.2) * 5)
    # Values lie 4 pixels apart, from pixel 1 on
    along = [1 + 4 * np.arange(count) for count in combined.shape[1:]]
    wide = np.apply_along_axis(lambda row: np.interp(np.arange(TILE[1]), along[1], row), 2, combined)
    expected = np.apply_along_axis(lambda col: np.interp(np.arange(TILE[0]), along[0], col), 1, wide)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(score.numpy(), anomaly_map.amax((1, 2, 3)).numpy())


def test_normalisation_and_quantiles_are_those_of_the_tiles():
    efficient_ad = model()
    tiles = stream(efficient_ad)
    head = efficient_ad.fit(tiles, seed=1)
    training, validation = efficient_ad._split(tiles, 1)
    assert len(validation) == 2
    described = [efficient_ad.extract(torch.from_numpy(tiles.cut(part)))[0] for part in (training, validation)]
    normalised = head.normalised(described[0])
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-4
    assert (normalised.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    with torch.no_grad():
        scaled = (head.distances(torch.from_numpy(tiles.cut(validation)), described[1]) - head.low) * head.gain
    for values in scaled.unbind(1):
        np.testing.assert_allclose(np.quantile(values.numpy(), (0.9, 0.995)), (0, 0.1), atol=1e-4)


def test_a_location_that_never_changes_is_not_infinitely_sensitive():
    efficient_ad = model()
    tiles = TileStream(np.full((8, *TILE, 3), 255, np.uint8), SETUP.grid, (Location(0, 0),), efficient_ad.extract)
    head = efficient_ad.fit(replace(tiles, with_image=True), seed=1)
    image = np.full((1, *TILE, 3), 255, np.uint8)
    with torch.no_grad():
        _, score = head(torch.from_numpy(image), *efficient_ad.extract(torch.from_numpy(image)))
        image[0, 30, 20] = 254
        _, grain = head(torch.from_numpy(image), *efficient_ad.extract(torch.from_numpy(image)))
    assert abs(grain.item() - score.item()) < 1


def test_adapting_undoes_a_change_of_the_features():
    efficient_ad = model()
    tiles = stream(efficient_ad)
    head = efficient_ad.fit(tiles, seed=1)

    def shifted(image):
        return [3 * feature - 1 for feature in efficient_ad.extract(image)]

    adapted = efficient_ad.adapt(head, stream(efficient_ad, extract=shifted), seed=1)
    image = torch.from_numpy(scene(3, TILE, seed=5))
    with torch.no_grad():
        before, after = head(image, *efficient_ad.extract(image)), adapted(image, *shifted(image))
    for expected, got in zip(before, after, strict=True):
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)
    assert not torch.equal(head.teacher_mean, adapted.teacher_mean)  # a copy was adapted


def test_photographs_raise_the_loss_by_their_penalty(tmp_path, monkeypatch):
    import cv2

    from edge_ad.methods import efficient_ad

    monkeypatch.setattr(efficient_ad, "jitter", lambda image: image)  # drawn at random, as photographs are

    cv2.imwrite(str(tmp_path / "photograph.png"), np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    plain, penalised = model(), model(penalty_images=str(tmp_path))
    head = plain.new_head().eval()
    image = torch.from_numpy(scene(2, TILE))
    features = tuple(plain.extract(image))
    losses = []
    for each in (plain, penalised):
        torch.manual_seed(4)
        with torch.no_grad():
            if each is penalised:
                drawn = each.photographs.draw(2)
                expected = (head.imitations(drawn)[0] ** 2).mean()
                torch.manual_seed(4)
            losses.append(each.loss(head, each.drawn((image, *features))))
    assert expected > 0
    assert (losses[1] - losses[0]).item() == pytest.approx(expected.item(), rel=1e-2)


def test_the_loss_is_the_papers():
    """Every input is another, so that none stands in for another: algorithm 1 of the paper, in numpy."""
    efficient_ad = model()
    head = efficient_ad.new_head().eval()
    image, changed, photographs = (torch.from_numpy(scene(2, TILE, seed=seed)) for seed in (1, 2, 3))
    with torch.no_grad():
        for values in head.parameters():
            values.mul_(2.5 if values.ndim > 1 else 1)  # deep networks that are new answer to their biases alone
        head.teacher_mean.normal_()
        head.teacher_std.uniform_(0.5, 2)
        description, described = torch.randn(2, 2, 10, 16, 12)
        loss = efficient_ad.loss(head, (image, description, changed, described, photographs))

        def outputs(network, tiles):
            return network((tiles.permute(0, 3, 1, 2) / 255 - head.mean) / head.std).double().numpy()

        student, other, penalised = (outputs(head.student, tiles) for tiles in (image, changed, photographs))
        autoencoder = outputs(head.autoencoder, changed)
        mean, std = head.teacher_mean.numpy(), head.teacher_std.numpy()
    squares = ((description.numpy() - mean) / std - student[:, :10]) ** 2
    hard = squares[squares >= np.quantile(squares, 0.999)].mean()
    penalty = np.mean(penalised[:, :10] ** 2)
    of_autoencoder = np.mean(((described.numpy() - mean) / std - autoencoder) ** 2)
    between = np.mean((autoencoder - other[:, 10:]) ** 2)
    terms = np.array([hard, penalty, of_autoencoder, between])
    assert terms.min() > 0.01 * terms.sum()  # so that each of them is seen
    assert loss.item() == pytest.approx(terms.sum(), rel=1e-5)


def test_the_autoencoder_is_trained_on_other_colours():
    efficient_ad = model()
    image = torch.from_numpy(scene(2, TILE))
    (description,) = efficient_ad.extract(image)
    kept = image.clone()
    same, its, changed, described = efficient_ad.drawn((image, description))
    assert same is image
    assert its is description
    assert torch.equal(image, kept)
    assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
    for before, after in zip(image, changed, strict=True):
        assert not torch.equal(before, after)
        assert (after.float() - before.float()).abs().max() <= 0.2 * 255 + 1  # but by a fifth at most
    torch.testing.assert_close(described, efficient_ad.extract(changed)[0])
    assert not torch.allclose(described, description)


def test_what_was_trained_needs_the_photographs_no_more(tmp_path):
    again = model(penalty_images=str(tmp_path / "gone"))
    assert again.head_from_state(again.new_head().state_dict()) is not None


def test_bad_input(tmp_path):
    with pytest.raises(WeightsNotFoundError, match="make one with edge-ad distill and pass it as --weights FILE"):
        create_model("efficient_ad", TILE)
    with pytest.raises(EmptyDataError, match="no images in"):
        model(penalty_images=str(tmp_path)).check_counts(10, 10)
    with pytest.raises(TooFewImagesError, match="efficient_ad needs at least 2 training"):
        model().check_counts(1, 1)
