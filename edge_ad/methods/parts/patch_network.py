"""Networks that describe a patch of p x p pixels each, run over a whole tile at once, several of them side by side.

Source: Bergmann et al., "Uninformed Students", arXiv 1911.02357, appendix, whose patches have 17, 33 and 65 pixels. A
patch network is a plain one, its pooling halves the patch. Over a tile only what overlaps is shared between patches:
up to the step between patches pooling halves the tile as it does the patch; behind it pooling moves by one position and
convolutions are dilated instead, and every position is what the patch network makes of the patch there. The paper's
step is one pixel; here it is that of what is to be described, 4 pixels as a rule, at a tenth of the cost or less.

Halving an odd size drops a pixel, so that a description depends on 17, 32 and 60 pixels: see `extent_px`.

Symbols: N batch, h, w tile size, K networks side by side, C channels of a description, h' x w' positions.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.methods.parts.pdn import Layer
from edge_ad.tiling import Size

SLOPE = 0.005  # of the rectifiers, below zero
WIDTH = 128  # the paper's: the least of the channels below
# Behind each there is one more convolution, to the descriptions: of all that is left of the patch
NETWORKS: dict[int, tuple[Layer, ...]] = {
    17: (Layer(6, 128), Layer(5, 256), Layer(5, 256)),
    33: (Layer(5, 128, pooled=True), Layer(5, 256, pooled=True), Layer(2, 256)),
    65: (Layer(5, 128, pooled=True), Layer(5, 128, pooled=True), Layer(5, 128, pooled=True), Layer(4, 256)),
}
LAST_KERNELS = {17: 4, 33: 4, 65: 1}


def extent_px(field: int) -> int:
    """Side of what a description depends on.

    >>> [extent_px(field) for field in (17, 33, 65)]
    [17, 32, 60]
    """
    extent, jump = 1, 1
    for layer in (*NETWORKS[field], Layer(LAST_KERNELS[field], 0)):
        extent += (layer.kernel - 1) * jump
        if layer.pooled:
            extent, jump = extent + jump, 2 * jump
    return extent


class PatchNetworks(nn.Module):
    """K patch networks of one field as one network, from scaled tiles (see `scale_image`) to descriptions.

    They share the image and nothing else: the first convolution has all their filters, the others a group for each.
    Tiles are mirrored at their edges, so that descriptions lie evenly over the tile, each in the middle of its patch.

    Args:
        field: p, one of `NETWORKS`.
        tile_size: (h, w) pixels.
        positions: (h', w') of the descriptions.
        step: pixels between them, a power of two.
        channels: C.
        width: channels of the first convolution; the others' in the paper's proportion.
        copies: K.

    Raises:
        InputError: no such field, patches that leave gaps, or a tile too small for them.
    """

    def __init__(
        self, field: int, tile_size: Size, positions: Size, step: int, channels: int, *, width: int, copies: int
    ) -> None:
        super().__init__()
        if field not in NETWORKS:
            raise InputError(f"fields: expected some of {', '.join(map(str, NETWORKS))}, but got {field}")
        self.copies = copies
        extent = extent_px(field)
        if step > extent:
            raise InputError(f"fields: positions {step} pixels apart leave gaps between patches of {field}")
        before = (extent - step) // 2
        after = [extent + step * (count - 1) - side - before for side, count in zip(tile_size, positions, strict=True)]
        if max(before, *after) >= min(tile_size):
            raise InputError(
                f"a tile of {tile_size[0]}x{tile_size[1]} is too small for patches of {field} pixels; "
                f"use at least {max(before, *after) + 1}x{max(before, *after) + 1}"
            )
        self.margins = (before, after[1], before, after[0])  # left, right, top, bottom
        steps: list[nn.Module] = []
        widths = [layer.channels * width // WIDTH for layer in NETWORKS[field]]
        stride, dilation = 1, 1
        for layer, (before_it, after_it) in zip(NETWORKS[field], itertools.pairwise([0, *widths]), strict=True):
            steps += [_convolution(before_it, after_it, layer.kernel, copies, dilation=dilation), nn.LeakyReLU(SLOPE)]
            if layer.pooled and stride < step:
                steps.append(nn.MaxPool2d(2))
                stride *= 2
            elif layer.pooled:
                steps.append(nn.MaxPool2d(2, stride=1, dilation=dilation))
                dilation *= 2
        kernel = LAST_KERNELS[field]
        steps.append(_convolution(widths[-1], channels, kernel, copies, dilation=dilation, stride=step // stride))
        self.net = nn.Sequential(*steps)

    def forward(self, scaled: Tensor) -> Tensor:
        """(N, K, C, h', w') of ``scaled`` (N, 3, h, w)."""
        described: Tensor = self.net(F.pad(scaled, self.margins, mode="reflect")).unflatten(1, (self.copies, -1))
        return described


def _convolution(before: int, after: int, kernel: int, copies: int, *, dilation: int, stride: int = 1) -> nn.Module:
    """``copies`` convolutions side by side; of the image itself where there is nothing ``before``."""
    inputs, groups = (before * copies, copies) if before else (3, 1)
    return nn.Conv2d(inputs, after * copies, kernel, stride, dilation=dilation, groups=groups)
