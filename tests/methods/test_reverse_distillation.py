"""Reverse Distillation's student, map, score and loss against functional torch and plain numpy in float64."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from tiny_run import BACKBONE, scene

from edge_ad.errors import BackboneError
from edge_ad.methods import create_model
from edge_ad.methods.reverse_distillation import ReverseDistillation
from edge_ad.methods.tile_model import TileStream
from edge_ad.tiling import Location, TileGrid

TILE = (32, 48)  # the deepest map is 2x3: its odd side is halved and doubled again


def new_model(tile_size=TILE, backbone="resnet18", **options):
    torch.manual_seed(0)
    return create_model("reverse_distillation", tile_size, backbone=backbone, weights="none", **options)


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(scope="module")
def head(model):
    torch.manual_seed(1)
    head = model.new_head()
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value += 0.2 * torch.rand_like(value)
    return head.eval()


@pytest.fixture(scope="module")
def features(model):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *TILE, 3), np.uint8))
    return tuple(model.extract(image))


class Weights:
    """The parameters of the head in the order of its layers' definition, in float64."""

    def __init__(self, module):
        self.values = (value.double() for key, value in module.state_dict().items() if "num_batches" not in key)

    def conv(self, maps, stride=1):
        weight = next(self.values)
        return F.conv2d(maps, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(self, maps):
        weight, bias, mean, var = (next(self.values) for _ in range(4))
        return F.batch_norm(maps, mean, var, weight, bias)

    def double(self, maps):
        return F.conv_transpose2d(maps, next(self.values), stride=2)

    def block(self, maps, change=None):
        """Residual, then shortcut, as in ResNet; ``change``: "halve" or "double"."""
        first = {None: self.conv, "halve": lambda m: self.conv(m, 2), "double": self.double}[change]
        residual = self.norm(self.conv(F.relu(self.norm(first(maps)))))
        return F.relu(residual + (maps if change is None else self.norm(first(maps))))


def student(head, features):
    """The three maps of the decoder for RD4AD's layout of a ResNet18, in float64."""
    one, two, three = (part.double() for part in features)
    own = Weights(head.bottleneck)
    for _ in range(2):
        one = F.relu(own.norm(own.conv(one, 2)))
    two = F.relu(own.norm(own.conv(two, 2)))
    maps = own.block(own.block(torch.cat([one, two, three], 1), "halve"))
    own, found = Weights(head.decoder), []
    for part in features[::-1]:
        maps = own.block(own.block(maps, "double"))[:, :, : part.shape[2], : part.shape[3]]
        found.insert(0, maps)
    return found


@pytest.fixture(scope="module")
def rebuilt(head, features):
    return student(head, features)


@torch.no_grad()
def test_student(head, features, rebuilt):
    for actual, expected, feature in zip(head.student(features), rebuilt, features, strict=True):
        assert actual.shape == feature.shape
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def cosines(features, rebuilt, axes):
    for feature, maps in zip(features, rebuilt, strict=True):
        t, s = feature.double().numpy(), maps.numpy()
        yield (t * s).sum(axes) / np.sqrt((t * t).sum(axes) * (s * s).sum(axes))


@torch.no_grad()
def test_map_and_score(head, features, rebuilt):
    expected = np.zeros((3, *TILE))
    for cosine in cosines(features, rebuilt, axes=1):
        layer = torch.from_numpy(1 - cosine)[:, None]
        large = F.interpolate(layer, size=TILE, mode="bilinear", align_corners=True)[:, 0].numpy()
        expected += scipy.ndimage.gaussian_filter(large, (0, 4, 4))
    anomaly_map, score = head(*features)
    assert anomaly_map.shape == (3, 1, *TILE)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2)), rtol=1e-4)


@pytest.mark.parametrize(("loss_per_position", "axes"), [(False, (1, 2, 3)), (True, 1)])
@torch.no_grad()
def test_loss(head, features, rebuilt, loss_per_position, axes):
    expected = sum((1 - cosine).mean() for cosine in cosines(features, rebuilt, axes))
    model = new_model(loss_per_position=loss_per_position)
    assert model.loss(head, features).item() == pytest.approx(expected, rel=1e-5)


def test_the_published_size():
    """The tiled paper's 18.2 M are these and ResNet18 to layer3, without the official code's dead convolution."""
    head = new_model((256, 256)).new_head()
    parts = [sum(p.numel() for p in part.parameters()) for part in (head.bottleneck, head.decoder)]
    assert parts == [11_680_000, 3_703_168]
    assert sum(parts) + 2_782_784 == 18_165_952
    assert sum(p.numel() for p in head.parameters()) == sum(parts)


def test_first_weights(model):
    torch.manual_seed(2)
    head = model.new_head()
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if isinstance(module, torch.nn.ConvTranspose2d):  # torch's default, uniform
            bound = (module.out_channels * 4) ** -0.5
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


@torch.no_grad()
def test_a_student_of_signed_features_is_signed(model):
    assert model.rectified == [True] * 3
    signed = new_model((32, 32), "tf_efficientnet_lite0")
    assert signed.rectified == [False] * 3
    features = signed.extract(torch.from_numpy(scene(2, (32, 32))))
    for maps, feature in zip(signed.new_head().eval().student(features), features, strict=True):
        assert maps.shape == feature.shape
        assert maps.min() < 0 < maps.max()


def test_two_layers_will_do():
    model = new_model((32, 32), layers=("layer2", "layer3"))
    features = model.extract(torch.from_numpy(scene(2, (32, 32))))
    assert [tuple(m.shape) for m in model.new_head().eval().student(features)] == [(2, 128, 4, 4), (2, 256, 2, 2)]


@pytest.mark.parametrize("loss_per_position", [False, True])
def test_training_lowers_the_loss(loss_per_position):
    options = {"steps": 24, "batch_size": 4, "loss_per_position": loss_per_position}
    model = new_model(TILE, BACKBONE, **options)
    tiles = TileStream(scene(10, TILE), TileGrid(TILE, TILE, TILE), (Location(0, 0),), model.extract)
    trained, inputs = model.fit(tiles, seed=0), next(iter(tiles))
    with torch.no_grad():
        before, after = (model.loss(head, inputs).item() for head in (model.new_head().eval(), trained))
    assert after < 0.5 * before  # 0.20 and 0.08 measured


def test_the_official_hyper_parameters():
    for schedule in ReverseDistillation.schedules.values():
        optimiser = schedule.optimiser([torch.nn.Parameter(torch.zeros(1))], lr=schedule.learning_rate)
        assert type(optimiser) is torch.optim.Adam
        settings = optimiser.param_groups[0]
        assert (settings["lr"], settings["betas"], settings["weight_decay"]) == (5e-3, (0.5, 0.999), 0)
        assert not schedule.keep_best
    paper, original = ReverseDistillation.schedules["paper"], ReverseDistillation.schedules["original"]
    assert (paper.steps, paper.batch_size) == (200, 32)
    assert (original.epochs, original.batch_size) == (200, 16)


def test_errors():
    with pytest.raises(BackboneError, match="tile size 40x32 is no multiple of the stride 16"):
        new_model((40, 32))
    message = r"reverse_distillation needs layers whose strides double, but got layer1 \(4\), layer3 \(16\); choose"
    with pytest.raises(BackboneError, match=message):
        new_model(layers=("layer1", "layer3"))
