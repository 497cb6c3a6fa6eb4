"""FastFlow's flow: couplings and permutations of channels, as they are trained and as engines run them.

Source: Yu et al., arXiv 2111.07677, section 3.3; gathierry/FastFlow, whose steps are FrEIA's AllInOneBlock.

Engines convolve channels last, and an index over channels makes them turn every tensor round and back: two thirds of an
int8 head's time went there. So a graph of a flow (`FlowGraph`) holds the two halves of the channels apart, which needs
no cutting and joining, and permutes by 1x1 convolutions that read one channel each. Scales, shifts and gains are part
of a convolution's weights where one is at hand.

Shifts are subtracted, and learnt with the opposite sign: subtractions stay in float when the convolutions are put into
int8, additions do not in ONNX (`MEASURING` in `exporters/quantisation.py`). Their rounding compounds over the steps, to
a quarter of the map's range on test images, where the convolutions alone cost a hundredth.

Symbols: N batch, C channels, h' x w' positions of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FLOW_STEPS = 8
LOG_SCALE_LIMIT = 2.0
SUBNET_GAIN = 0.1


class Coupling(nn.Module):
    """One step of a flow: half of the channels moves as the other half says; then all are scaled, shifted and permuted.

    Args:
        channels: C, of which the first half, rounded up, stays.
        kernel: size of the two convolutions.
    """

    order: Tensor

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.moved = channels // 2
        self.kept = channels - self.moved
        self.subnet = nn.Sequential(
            nn.Conv2d(self.kept, self.kept, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(self.kept, 2 * self.moved, kernel, padding=kernel // 2),
        )
        one = 2 * math.log(math.expm1(5))  # where `scale` is 1
        self.raw_scale = nn.Parameter(torch.full((channels, 1, 1), one))
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("order", torch.randperm(channels))

    def scale(self) -> Tensor:
        """What every channel is multiplied by, positive, (C, 1, 1)."""
        # 0.1 softplus with beta 0.5, written out: OpenVINO's conversion of torch's takes beta as 1
        return 0.2 * (0.5 * self.raw_scale).exp().log1p()

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h', w') to the same, and the logarithm of the Jacobian's determinant (N,)."""
        kept, moved = values[:, : self.kept], values[:, self.kept :]
        said = self.subnet(kept) * SUBNET_GAIN
        log_scale = LOG_SCALE_LIMIT * torch.tanh(said[:, : self.moved])
        moved = moved * log_scale.exp() - said[:, self.moved :]
        scale = self.scale()
        result = torch.cat([kept, moved], dim=1) * scale - self.offset
        positions = values.shape[2] * values.shape[3]
        return result.index_select(1, self.order), log_scale.sum((1, 2, 3)) + positions * scale.log().sum()


class Flow(nn.Module):
    """`FLOW_STEPS` couplings, an invertible function of a layer's features.

    Args:
        channels: C.
        conv3x3_only: else kernels of 3 and 1 alternate.
    """

    def __init__(self, channels: int, conv3x3_only: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            Coupling(channels, 3 if conv3x3_only or step % 2 == 0 else 1) for step in range(FLOW_STEPS)
        )

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, C, h', w') and the logarithm of the Jacobian's determinant (N,)."""
        log_determinants = []
        for step in self.steps:
            values, log_determinant = step(values)
            log_determinants.append(log_determinant)
        return values, torch.stack(log_determinants).sum(0)


class CouplingGraph(nn.Module):
    """A trained `Coupling` on the two halves of the channels; the logarithm of its determinant is not computed.

    Args:
        step: what it computes.
        last: of the flow; then the channels are scaled and shifted but stay in their order, which a sum does not see.
    """

    kept_scale: Tensor
    kept_offset: Tensor
    moved_scale: Tensor
    moved_offset: Tensor

    @torch.no_grad()
    def __init__(self, step: Coupling, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.hidden = nn.Sequential(step.subnet[0], step.subnet[1])
        said = step.subnet[2]
        assert isinstance(said, nn.Conv2d)
        assert said.bias is not None
        weight, bias = SUBNET_GAIN * said.weight, SUBNET_GAIN * said.bias
        self.log_scale = convolution(weight[: step.moved], bias[: step.moved])
        self.shift = convolution(weight[step.moved :], bias[step.moved :])
        scale, offset = step.scale(), step.offset.detach()
        if last:
            self.register_buffer("kept_scale", scale[: step.kept])
            self.register_buffer("kept_offset", offset[: step.kept])
            self.register_buffer("moved_scale", scale[step.kept :])
            self.register_buffer("moved_offset", offset[step.kept :])
            return
        picks = torch.diag(scale.flatten())[step.order, :, None, None]
        offset = offset.flatten()[step.order]
        kept, moved = slice(step.kept), slice(step.kept, None)
        self.kept_from_kept = convolution(picks[kept, kept], -offset[kept])
        self.kept_from_moved = convolution(-picks[kept, moved])
        self.moved_from_kept = convolution(picks[moved, kept], -offset[moved])
        self.moved_from_moved = convolution(-picks[moved, moved])

    def forward(self, kept: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C - C // 2, h', w') and (N, C // 2, h', w') to the same."""
        hidden = self.hidden(kept)
        moved = moved * (LOG_SCALE_LIMIT * torch.tanh(self.log_scale(hidden))).exp() - self.shift(hidden)
        if self.last:
            return kept * self.kept_scale - self.kept_offset, moved * self.moved_scale - self.moved_offset
        return (
            self.kept_from_kept(kept) - self.kept_from_moved(moved),
            self.moved_from_kept(kept) - self.moved_from_moved(moved),
        )


class FlowGraph(nn.Module):
    """A trained `Flow` to the mean square of its outcome, which is all a map is made of."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        steps = [step for step in flow.steps if isinstance(step, Coupling)]
        self.kept, self.channels = steps[0].kept, steps[0].kept + steps[0].moved
        self.steps = nn.ModuleList(CouplingGraph(step, last=step is steps[-1]) for step in steps)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, h', w') to mean_c z^2 (N, 1, h', w')."""
        kept, moved = values[:, : self.kept], values[:, self.kept :]
        for step in self.steps:
            kept, moved = step(kept, moved)
        square, less = (kept * kept).sum(1, keepdim=True), -(moved * moved).sum(1, keepdim=True)
        return (square - less) / self.channels


def convolution(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """With these weights (O, I, k, k), which keeps the positions."""
    outputs, inputs, kernel, _ = weight.shape
    result = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias is not None)
    result.weight.data.copy_(weight)
    if bias is not None and result.bias is not None:
        result.bias.data.copy_(bias)
    return result
