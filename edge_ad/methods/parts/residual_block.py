"""ResNet's basic block, in the variants that students and decoders are built of, and how its convolutions begin."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut.

    Args:
        first: the first convolution, to ``channels``; it may change the size.
        shortcut: of the same effect on shapes.
        channels: C after the block.
        rectified: whether the block ends in a ReLU.
    """

    def __init__(self, first: nn.Module, shortcut: nn.Module, channels: int, *, rectified: bool = True) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            first, nn.BatchNorm2d(channels), nn.ReLU(), conv3x3(channels, channels), nn.BatchNorm2d(channels)
        )
        self.shortcut = shortcut
        self.activation = nn.ReLU() if rectified else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h', w') of maps as the first convolution takes them."""
        result: Tensor = self.activation(self.residual(maps) + self.shortcut(maps))
        return result


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """Keeps the size, or divides it by ``stride``, rounded up."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut beside a convolution that changes channels or size."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def strided_block(inputs: int, outputs: int, stride: int, *, rectified: bool = True) -> ResidualBlock:
    """A block that divides the size by ``stride``, rounded up."""
    first, shortcut = conv3x3(inputs, outputs, stride), projection(inputs, outputs, stride)
    return ResidualBlock(first, shortcut, outputs, rectified=rectified)


def initialise(net: nn.Module) -> None:
    """Convolutions, not the transposed ones, as He et al. initialise ResNet's, from torch's global generator."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
