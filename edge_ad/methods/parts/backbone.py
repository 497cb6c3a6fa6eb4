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
from edge_ad.methods.parts.image_scaling import scale_image
from edge_ad.methods.parts.taps import tap, tapped
from edge_ad.methods.parts.torchvision_import import import_torchvision
from edge_ad.methods.parts.weights import load_weights
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
        layers: modules to tap, by their names in timm; empty for those of ``reductions``.
        weights: ``"auto"``, ``"none"`` (random) or a file; see `edge_ad.methods.parts.weights`.
        reductions: strides in pixels of the layers tapped where none are named.
        before_blocks: where none are named, tap what enters the first block as well: ``maxpool``, or, of a network
            without it, the shallowest layer that timm lists.

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
        *,
        before_blocks: bool = False,
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
        listed = info.get_dicts()
        there = [entry["module"] for entry in listed]
        if not layers:
            layers = _layers_of(name, listed, reductions)
            if before_blocks:
                layers = ["maxpool" if "maxpool" in _modules(name) else there[0], *layers]
        layers = list(dict.fromkeys(layers))
        if missing := [layer for layer in layers if layer not in there and layer not in _modules(name)]:
            raise BackboneError(f"backbone {name!r} has no module {', '.join(missing)}; it has {_names_of(listed)}")
        self._layers = layers
        # Empty where timm cannot make the cut
        self._indices = tuple(sorted(map(there.index, layers))) if set(layers) <= set(there) else ()
        self.net = self._cut()
        self.features = (
            tuple(FeatureSpec(listed[i]["module"], listed[i]["num_chs"], listed[i]["reduction"]) for i in self._indices)
            if self._indices
            else tuple(FeatureSpec(*spec) for spec in tapped(self.net))
        )
        self.source = load_weights(self.net, name, weights)
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        mean, std = (config.mean, config.std) if config is not None else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """Name and tapped layers, as the configuration of a method holds them."""
        return {"backbone": self.name, "layers": [spec.layer for spec in self.features]}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the maps as outputs of a graph, shallow to deep."""
        return tuple(f"feature_{index}" for index in range(len(self.features)))

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: batch-norm statistics of a frozen network must not move."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h / r_i, w / r_i) float32 of ``image`` uint8 (N, h, w, 3) RGB."""
        maps: list[Tensor] = self.net(scale_image(image, self.mean, self.std))
        return maps

    def map_sizes(self, tile_size: Size, count: int | None = None) -> list[Size]:
        """(h', w') of every tapped map, or of the first ``count``.

        Raises:
            BackboneError: a stride of theirs does not divide ``tile_size``.
        """
        wanted = self.features[:count]
        deepest = wanted[-1]
        if any(size % deepest.reduction for size in tile_size):
            raise BackboneError(
                f"tile size {tile_size[0]}x{tile_size[1]} is no multiple of the stride "
                f"{deepest.reduction} of {self.name}'s layer {deepest.layer}; choose such a tile size"
            )
        return [(tile_size[0] // spec.reduction, tile_size[1] // spec.reduction) for spec in wanted]

    def untrained(self) -> nn.Module:
        """The same network, random and trainable, from scaled images (see `scale_image`) to the same maps.

        Weights come from torch's global generator, as timm draws them: the last normalisation of a ResNet's residual
        blocks starts at scale 0, which trains faster (Goyal et al., arXiv 1706.02677, section 5.1); other networks'
        starts at 1.
        """
        return self._cut()

    def _cut(self) -> nn.Module:
        """The network with random weights, to the deepest tap."""
        import timm

        if self._indices:
            net: nn.Module = timm.create_model(
                self.name, pretrained=False, features_only=True, out_indices=self._indices
            )
            return net
        return tap(timm.create_model(self.name, pretrained=False), self._layers)


def _layers_of(name: str, listed: list[dict[str, Any]], reductions: Sequence[int]) -> list[str]:
    """Names of the layers of these strides."""
    by_reduction = {entry["reduction"]: entry["module"] for entry in reversed(listed)}
    if missing := [str(reduction) for reduction in reductions if reduction not in by_reduction]:
        raise BackboneError(f"backbone {name!r} has no reduction {', '.join(missing)}; it has {_names_of(listed)}")
    return [by_reduction[reduction] for reduction in reductions]


def _names_of(listed: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['module']} (stride {entry['reduction']})" for entry in listed)


def _modules(name: str) -> set[str]:
    import timm

    with torch.device("meta"):
        return {key for key, _ in timm.create_model(name, pretrained=False).named_modules()}
