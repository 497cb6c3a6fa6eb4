"""Frozen feature extractors: any timm network, cut after the deepest layer that is asked for.

Symbols: N batch, C channels, h, w tile size.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_ad.errors import BackboneError
from edge_ad.methods.torchvision_import import import_torchvision
from edge_ad.methods.weights import load_weights
from edge_ad.tiling import Size

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
        layers: timm layer names to tap, shallow to deep; empty for those of ``reductions``.
        weights: ``"auto"``, ``"none"`` (random) or a file; see `edge_ad.methods.weights`.
        reductions: strides in pixels of the layers tapped where none are named.

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

    def __init__(
        self,
        name: str,
        layers: Sequence[str] = (),
        weights: str = "auto",
        reductions: Sequence[int] = DEFAULT_REDUCTIONS,
    ) -> None:
        super().__init__()
        import_torchvision()
        import timm

        self.name = name
        try:
            info: Any = timm.create_model(name, pretrained=False, features_only=True).feature_info
        except RuntimeError as error:
            similar = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "see timm.list_models()"
            raise BackboneError(f"backbone {name!r} cannot be built: {error}; similar: {similar}") from error
        available = info.get_dicts()
        self._indices = _tap_indices(name, available, layers, reductions)
        self.features = tuple(
            FeatureSpec(available[i]["module"], available[i]["num_chs"], available[i]["reduction"])
            for i in self._indices
        )
        self.net = timm.create_model(name, pretrained=False, features_only=True, out_indices=self._indices)
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
        maps: list[Tensor] = self.net(scale_image(image, self.mean, self.std))
        return maps

    def map_sizes(self, tile_size: Size) -> list[Size]:
        """(h', w') of every tapped map. Raises `BackboneError` where a stride does not divide ``tile_size``."""
        deepest = self.features[-1]
        if any(size % deepest.reduction for size in tile_size):
            raise BackboneError(
                f"tile size {tile_size[0]}x{tile_size[1]} is no multiple of the stride "
                f"{deepest.reduction} of {self.name}'s layer {deepest.layer}; choose such a tile size"
            )
        return [(tile_size[0] // spec.reduction, tile_size[1] // spec.reduction) for spec in self.features]

    def untrained(self) -> nn.Module:
        """The same network, random and trainable, from scaled images (see `scale_image`) to the same maps.

        Weights come from torch's global generator. Every normalisation starts at scale 1 and shift 0, as torchvision
        does; timm starts the last one of a residual block at 0.
        """
        import timm

        net: nn.Module = timm.create_model(self.name, pretrained=False, features_only=True, out_indices=self._indices)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        return net


def scale_image(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Float (N, 3, h, w), normalised by ``mean`` and ``std`` (1, 3, 1, 1), of ``image`` uint8 (N, h, w, 3)."""
    # (x / 255 - mean) / std as one multiply and one add
    return image.permute(0, 3, 1, 2).to(mean.dtype) * (1 / (255 * std)) - mean / std


def _tap_indices(
    name: str, available: list[dict[str, object]], layers: Sequence[str], reductions: Sequence[int]
) -> tuple[int, ...]:
    key, wanted = ("module", list(layers)) if layers else ("reduction", list(reductions))
    names = [entry[key] for entry in available]
    if missing := [str(layer) for layer in wanted if layer not in names]:
        there = ", ".join(f"{entry['module']} (stride {entry['reduction']})" for entry in available)
        raise BackboneError(f"backbone {name!r} has no {key} {', '.join(missing)}; it has {there}")
    return tuple(sorted(names.index(layer) for layer in wanted))
