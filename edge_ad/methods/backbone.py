"""Frozen feature extractors: any timm network, cut after the deepest layer that is asked for.

Symbols: N batch, C channels, h, w tile size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_ad.errors import BackboneError
from edge_ad.methods.torchvision_import import import_torchvision
from edge_ad.methods.weights import load_weights

DEFAULT_BACKBONE = "tf_efficientnet_lite0"  # its weights come in a package: no download
DEFAULT_REDUCTIONS = (4, 8, 16)  # strides of the taps when no layers are named: ResNet's layer1, layer2, layer3


@dataclass(frozen=True)
class FeatureSpec:
    """One tapped layer: its name in timm, channels, and stride in pixels."""

    layer: str
    channels: int
    reduction: int


class Backbone(nn.Module):
    """A timm network in evaluation mode that returns the maps of its tapped layers.

    Args:
        name: timm name, with or without a weight tag (``"resnet18"``, ``"wide_resnet50_2.tv_in1k"``).
        layers: timm layer names to tap, shallow to deep; empty for those of stride 4, 8 and 16.
        weights: ``"auto"``, ``"none"`` (random) or a file; see `edge_ad.methods.weights`.

    Attributes:
        features: what is tapped, shallow to deep.
        source: where the weights came from.
        mean, std: input normalisation of the pretrained network, per RGB channel, for images in [0, 1].

    Raises:
        BackboneError: unknown network or layer; the message lists those there are.
        WeightsNotFoundError, WrongWeightsError, NonFiniteWeightsError: see `load_weights`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, layers: Sequence[str] = (), weights: str = "auto") -> None:
        super().__init__()
        import_torchvision()
        import timm

        self.name = name
        try:
            info: Any = timm.create_model(name, pretrained=False, features_only=True).feature_info
        except RuntimeError as error:
            close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise BackboneError(f"backbone {name!r} cannot be built: {error}; similar: {close}") from error
        available = info.get_dicts()
        indices = _tap_indices(name, available, layers)
        self.features = tuple(
            FeatureSpec(available[i]["module"], available[i]["num_chs"], available[i]["reduction"]) for i in indices
        )
        self.net = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
        self.source = load_weights(self.net, name, weights)
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        mean, std = (config.mean, config.std) if config is not None else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: batch-norm statistics of a frozen network must not move."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h / r_i, w / r_i) float32 of ``image`` uint8 (N, h, w, 3) RGB."""
        dtype = self.mean.dtype
        # (x / 255 - mean) / std as one multiply and one add
        scaled = image.permute(0, 3, 1, 2).to(dtype) * (1 / (255 * self.std)) - self.mean / self.std
        maps: list[Tensor] = self.net(scaled)
        return maps


def _tap_indices(name: str, available: list[dict[str, object]], layers: Sequence[str]) -> tuple[int, ...]:
    key, wanted = ("module", list(layers)) if layers else ("reduction", list(DEFAULT_REDUCTIONS))
    names = [entry[key] for entry in available]
    if missing := [str(layer) for layer in wanted if layer not in names]:
        there = ", ".join(f"{entry['module']} (stride {entry['reduction']})" for entry in available)
        raise BackboneError(f"backbone {name!r} has no {key} {', '.join(missing)}; it has {there}")
    return tuple(sorted(names.index(layer) for layer in wanted))
