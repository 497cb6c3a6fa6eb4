"""The patch description network of EfficientAD: every position describes the 33 x 33 pixels around it.

Source: Batzner, Heckler and König, "EfficientAD", arXiv 2303.14535, section 3.1 and appendix. Convolutions without
padding: 256 pixels become 56 positions, 4 pixels apart, and a frame of 16 pixels is never in the middle of one. In a
tiled image that frame lies on the seams. So tiles are mirrored at their edges by `MARGIN_PX` here, which makes it 64
positions that cover the whole tile; ``mirror=False`` is the paper's network.

Symbols: N batch, h, w tile size, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError, WrongWeightsError
from edge_ad.methods.parts.weights import fill
from edge_ad.tiling import Size

CHANNELS = 384
FIELD_PX = 33  # receptive field
STEP_PX = 4  # between positions
MARGIN_PX = 15  # 64 positions for 256 pixels, centred to within half a pixel


@dataclass(frozen=True)
class Layer:
    """One convolution: kernel, output channels, and whether positions are then averaged by twos."""

    kernel: int
    channels: int
    pooled: bool = False


SIZES: dict[str, tuple[Layer, ...]] = {
    "s": (Layer(4, 128, pooled=True), Layer(4, 256, pooled=True), Layer(3, 256), Layer(4, CHANNELS)),
    "m": (
        Layer(4, 256, pooled=True),
        Layer(4, 512, pooled=True),
        Layer(1, 512),
        Layer(3, 512),
        Layer(4, CHANNELS),
        Layer(1, CHANNELS),
    ),
}


def layers_of(size: str) -> tuple[Layer, ...]:
    """The layers of ``"s"`` or ``"m"``. Raises `InputError` for any other size."""
    if size not in SIZES:
        raise InputError(f"size: expected one of {', '.join(SIZES)}, but got {size!r}")
    return SIZES[size]


class PatchDescription(nn.Module):
    """The network, from scaled images (see `scale_image`) to descriptions.

    Args:
        layers: convolutions, a ReLU behind each but the last.
        widen: factor on the channels of the layers that give as many as the last: two for a student, which describes
            for the teacher and for the autoencoder.
        mirror: mirror the tile at its edges, see the module.
    """

    def __init__(self, layers: tuple[Layer, ...], *, widen: int = 1, mirror: bool = True) -> None:
        super().__init__()
        self.mirror = mirror
        steps: list[nn.Module] = []
        channels, last = 3, layers[-1].channels
        for layer in layers:
            width = layer.channels * (widen if layer.channels == last else 1)
            steps += [nn.Conv2d(channels, width, layer.kernel), nn.ReLU()]
            if layer.pooled:
                steps.append(nn.AvgPool2d(2))
            channels = width
        self.net = nn.Sequential(*steps[:-1])

    def forward(self, scaled: Tensor) -> Tensor:
        """(N, C, h', w') of ``scaled`` (N, 3, h, w)."""
        if self.mirror:
            scaled = F.pad(scaled, (MARGIN_PX,) * 4, mode="reflect")
        described: Tensor = self.net(scaled)
        return described

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Weights of the same layers in the same order, whatever they are called.

        Raises:
            WrongWeightsError, NonFiniteWeightsError: see `edge_ad.methods.parts.weights.fill`.
        """
        own, theirs = (sorted(keys, key=_place) for keys in (self.net.state_dict(), state))
        if len(theirs) != len(own):
            raise WrongWeightsError(
                f"{source}: weights of another architecture: {len(theirs)} tensors, but the network has {len(own)}"
            )
        fill(self.net, {key: state[their_key] for key, their_key in zip(own, theirs, strict=True)}, source)


def _place(key: str) -> tuple[list[int], str]:
    """Sorts ``0.weight``, ``10.bias`` and ``conv1.weight`` as the layers come."""
    return [int(number) for number in re.findall(r"\d+", key)], key.rpartition(".")[2]


def positions(tile_size: Size, *, mirror: bool) -> Size:
    """(h', w') of the descriptions of a tile.

    >>> positions((256, 256), mirror=True), positions((256, 256), mirror=False)
    ((64, 64), (56, 56))

    Raises:
        InputError: the tile is too small for one.
    """
    margin = MARGIN_PX if mirror else 0
    height, width = ((side + 2 * margin - FIELD_PX) // STEP_PX + 1 for side in tile_size)
    if min(height, width) < 1 or min(tile_size) <= margin:
        raise InputError(f"a tile of {tile_size[0]}x{tile_size[1]} is too small for EfficientAD; use at least 36x36")
    return height, width


def cells(*, mirror: bool) -> tuple[float, float]:
    """(first, step) pixels: where positions lie in a tile, see `edge_ad.methods.parts.smoothing.linear_matrix`."""
    return FIELD_PX // 2 - (MARGIN_PX if mirror else 0), STEP_PX
