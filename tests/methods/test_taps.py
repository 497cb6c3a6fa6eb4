"""Modules that timm does not list, tapped: the same values, nothing behind them, the same names of tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from edge_ad.errors import BackboneError
from edge_ad.methods.parts.backbone import Backbone
from edge_ad.methods.parts.taps import tap, tapped
from edge_ad.methods.parts.torchvision_import import import_torchvision


@pytest.fixture(scope="module")
def timm():
    import_torchvision()
    import timm

    return timm


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("resnet18", ("layer2", "maxpool"), [("maxpool", 64, 4), ("layer2", 128, 8)]),
        ("resnet18", ("bn1", "act1"), [("bn1", 64, 2), ("act1", 64, 2)]),  # an activation in place follows the first
        ("efficientnet_b0", ("blocks.5", "blocks.4"), [("blocks.4", 112, 16), ("blocks.5", 192, 32)]),
        ("tf_efficientnet_lite0", ("blocks.1", "bn1"), [("bn1", 32, 2), ("blocks.1", 24, 4)]),
    ],
)
def test_values_are_those_inside_the_whole_network(timm, name, layers, expected):
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    backbone = Backbone(name, layers, weights="none")
    assert [(spec.layer, spec.channels, spec.reduction) for spec in backbone.features] == expected
    backbone.net.load_state_dict(
        {key: value for key, value in whole.state_dict().items() if key in backbone.net.state_dict()}
    )
    seen = {}
    for layer, *_ in expected:
        whole.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.update({layer: output.clone()})
        )
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))
    with torch.no_grad():
        whole((image.permute(0, 3, 1, 2) / 255 - backbone.mean) / backbone.std)
        got = backbone(image)
    for actual, (layer, *_) in zip(got, expected, strict=True):
        torch.testing.assert_close(actual, seen[layer], rtol=1e-4, atol=1e-5)


def test_what_lies_behind_the_deepest_tap_is_left_out():
    net = Backbone("efficientnet_b0", ("blocks.4", "blocks.5"), weights="none").net
    assert not any(key.startswith(("blocks.6", "conv_head", "classifier")) for key in net.state_dict())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["maxpool", "layer1", "layer2"]),
        ("tf_efficientnet_lite0", ["blocks.0", "blocks.1", "blocks.2"]),
        ("convnext_atto", ["stages.0", "stages.1"]),  # its first block is what the stem of stride 4 enters
    ],
)
def test_the_layer_before_the_first_block(name, expected):
    backbone = Backbone(name, weights="none", reductions=(4, 8), before_blocks=True)
    assert [spec.layer for spec in backbone.features] == expected


def test_an_untrained_network_has_the_same_taps():
    backbone = Backbone("resnet18", ("maxpool", "layer1"), weights="none")
    torch.manual_seed(0)
    net = backbone.untrained()
    assert tapped(net) == [("maxpool", 64, 4), ("layer1", 64, 4)]
    assert all(parameter.requires_grad for parameter in net.parameters())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.flat, self.idle = nn.Conv2d(3, 4, 1), nn.Flatten(), nn.ReLU()

    def forward(self, x):
        return self.flat(self.one(x) + self.one(x))


class Branching(Odd):
    def forward(self, x):
        return self.one(x) if x.sum() > 0 else x


def test_errors():
    for layer in ("one", "idle"):  # called twice, and never
        with pytest.raises(BackboneError, match=f"layers {layer} cannot be tapped: not each is called once"):
            tap(Odd(), [layer])
    with pytest.raises(BackboneError, match=r"layers one cannot be tapped: .*control flow"):
        tap(Branching(), ["one"])
    with pytest.raises(BackboneError, match=r"layers flat make no maps \(N, C, h, w\)"):
        tapped(tap(Odd(), ["flat"]))
