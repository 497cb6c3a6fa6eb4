"""EfficientAD-AST: map and loss from its parts, its switches, and the stages of its training."""

import cv2
import numpy as np
import pytest
import torch
from tiny_run import scene

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (64, 48)


def model(**parameters):
    torch.manual_seed(0)
    given = {"backbone": "resnet18", "weights": "none", "teacher_width": 8, "student_width": 16}
    return create_model("efficient_ad_ast", TILE, **(given | parameters))


def shuffled(head):
    """A teacher that is not the identity."""
    torch.manual_seed(7)
    for name, value in head.named_parameters():
        if name.endswith("gain"):
            value.data.fill_(0.3)
    return head.eval()


@torch.no_grad()
def parts(head, features):
    """z, the student's two halves and the autoencoder's, in float64."""
    z, _ = head.teacher(*head.placed(features))
    both = head.student(*head.placed(features))
    made = head.autoencoder(*head.placed(features))
    return [value.double() for value in (z, both[:, :256], both[:, 256:], made)]


@torch.no_grad()
def test_map_and_score():
    head = shuffled(model().new_head())
    features = torch.randn(2, 256, 4, 3)
    z, first, second, made = parts(head, features)
    expected = 0.5 * ((z - first) ** 2).mean(1) + 0.5 * ((made - second) ** 2).mean(1)
    expected = torch.nn.functional.interpolate(expected[:, None], size=TILE, mode="bilinear").numpy()
    anomaly_map, score = head(features)
    np.testing.assert_allclose(anomaly_map.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_loss_and_its_switches(tmp_path):
    cv2.imwrite(str(tmp_path / "photograph.png"), np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    plain, penalised, mined = model(), model(penalty_images=str(tmp_path)), model(hard=True)
    head = shuffled(plain.new_head())
    features = torch.randn(2, 256, 4, 3)
    z, first, second, made = parts(head, features)
    squares = (z - first) ** 2
    others = ((z - made) ** 2).mean() + ((made - second) ** 2).mean()
    assert float(plain.loss(head, (features,))) == pytest.approx(float(squares.mean() + others), rel=1e-5)
    hardest = squares.flatten().sort().values[-6:].mean()  # 0.1 % of 2 x 256 x 4 x 3
    assert float(mined.loss(head, (features,))) == pytest.approx(float(hardest + others), rel=1e-5)
    torch.manual_seed(4)
    away = penalised.extract(penalised.photographs.draw(2))[0]
    penalty = (head.imitations(away)[0].double() ** 2).mean()
    torch.manual_seed(4)
    expected = float(squares.mean() + others + penalty)
    assert float(penalised.loss(head, penalised.drawn((features,)))) == pytest.approx(expected, rel=1e-5)


def test_photographs_have_no_part_in_what_inference_normalises_by(tmp_path):
    cv2.imwrite(str(tmp_path / "photograph.png"), np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    features, seen = torch.randn(4, 256, 4, 3), []
    for parameters in ({}, {"penalty_images": str(tmp_path)}):
        trained = model(**parameters)
        head = shuffled(trained.new_head()).train()
        for _ in range(2):
            trained.loss(head, trained.drawn((features,)))
        seen.append(dict(head.student.named_buffers()))
    assert any(name.endswith("running_mean") for name in seen[0])
    for name, value in seen[0].items():
        torch.testing.assert_close(seen[1][name], value, msg=name)


def test_rectified_is_the_thesis_autoencoder():
    features = torch.randn(1, 256, 4, 3)
    for rectified in (False, True):
        head = model(rectified=rectified).new_head().eval()
        with torch.no_grad():
            made = head.autoencoder(*head.placed(features))
        assert made.shape == features.shape
        assert bool((made >= 0).all()) is rectified


def test_stages_leave_the_teacher_alone_and_keep_the_best():
    efficient_ad_ast = model(steps=6, batch_size=4, learning_rate=2e-3, scaled_maps=True)
    grid = TileGrid(TILE, TILE, TILE)
    tiles = TileStream(scene(10, TILE), grid, (Location(0, 0),), efficient_ad_ast.extract)
    told = []
    head = efficient_ad_ast.fit(tiles, seed=0, progress=lambda done, total, what: told.append(what))
    assert told == ["training teacher"] * 6 + ["training student"] * 6
    _, validation = efficient_ad_ast._split(tiles, 0)
    held_out = efficient_ad_ast.extract(torch.from_numpy(tiles.cut(validation)))[0]
    with torch.no_grad():
        scaled = (head.distances(held_out) - head.low) * head.gain
    for values in scaled.unbind(1):
        np.testing.assert_allclose(np.quantile(values.numpy(), (0.9, 0.995)), (0, 0.1), atol=1e-4)


def test_one_layer():
    with pytest.raises(BackboneError, match="efficient_ad_ast taps one layer, but got layer2, layer3"):
        model(layers=("layer2", "layer3"))
