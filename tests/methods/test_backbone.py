"""Frozen extractors: which layers are tapped, how the image is scaled, what is refused."""

import numpy as np
import pytest
import torch

from edge_ad.errors import BackboneError
from edge_ad.methods.parts.backbone import Backbone
from edge_ad.methods.parts.torchvision_import import import_torchvision

SMALL = "test_resnet"


@pytest.fixture(scope="module")
def timm():
    import_torchvision()
    import timm

    return timm


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [("layer1", 64, 4), ("layer2", 128, 8), ("layer3", 256, 16)]),
        ("wide_resnet50_2", [("layer1", 256, 4), ("layer2", 512, 8), ("layer3", 1024, 16)]),
        ("tf_efficientnet_lite0", [("blocks.1", 24, 4), ("blocks.2", 40, 8), ("blocks.4", 112, 16)]),
    ],
)
def test_layers_of_stride_4_8_16_unless_named(name, expected):
    features = Backbone(name, weights="none").features
    assert [(spec.layer, spec.channels, spec.reduction) for spec in features] == expected


@pytest.mark.parametrize("layers", [("layer1", "layer3"), ("layer3", "layer1")])
def test_named_layers_come_shallow_to_deep(layers):
    backbone = Backbone("resnet18", layers, weights="none")
    assert [spec.layer for spec in backbone.features] == ["layer1", "layer3"]
    shallow, deep = backbone(torch.zeros((2, 32, 64, 3), dtype=torch.uint8))
    assert (shallow.shape, deep.shape) == ((2, 64, 8, 16), (2, 256, 2, 4))


def test_what_lies_behind_the_deepest_layer_is_cut_off(timm):
    whole, cut = timm.create_model("resnet18"), Backbone("resnet18", ("layer2",), weights="none")
    assert sum(p.numel() for p in cut.parameters()) < 0.07 * sum(p.numel() for p in whole.parameters())


def test_maps_are_those_of_the_whole_network(timm):
    """Same weights, timm's own forward of every layer, and normalisation as torchvision writes it."""
    torch.manual_seed(0)
    whole = timm.create_model("resnet18").eval()
    backbone = Backbone("resnet18", weights="none")
    backbone.net.load_state_dict(whole.state_dict(), strict=False)
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = torch.from_numpy((image / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        x = whole.maxpool(whole.act1(whole.bn1(whole.conv1(scaled))))
        expected = [x := layer(x) for layer in (whole.layer1, whole.layer2, whole.layer3)]
        got = backbone(torch.from_numpy(image))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3)],
)
def test_every_network_has_its_own_normalisation(name, mean, std):
    backbone = Backbone(name, weights="none")
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor(std))


def test_a_tag_names_the_same_network():
    assert Backbone("resnet18.a1_in1k", weights="none").features == Backbone("resnet18", weights="none").features


def test_fitting_cannot_move_it():
    backbone = Backbone(SMALL, weights="none")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.nn.Sequential(backbone).train()
    backbone(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_networks_and_layers_that_there_are_not():
    with pytest.raises(BackboneError, match=r"backbone 'resnet19' cannot be built: .*; similar: .*resnet18"):
        Backbone("resnet19", weights="none")
    with pytest.raises(BackboneError, match=r"has no module layer7; it has act1 \(stride 2\), layer1 \(stride 4\)"):
        Backbone("resnet18", ("layer1", "layer7"), weights="none")
    with pytest.raises(BackboneError, match=r"'vgg11' has no reduction"):
        Backbone("vgg11", (), weights="none", reductions=(4, 64))
