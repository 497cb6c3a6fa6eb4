"""AST: a student that cannot undo what a flow does learns it on normal tiles, and is wrong elsewhere.

Source: Rudolph et al., "Asymmetric Student-Teacher Networks for Industrial Anomaly Detection", arXiv 2210.07829;
official code marco-rudolph/AST. The teacher is a normalising flow of the features and of where they lie, trained first;
the student is a plain network that learns the flow's outcome. Loss of the teacher: mean over positions of
0.5 sum_c z^2 minus the logarithm of the Jacobian's determinant there; of the student: mean (z_T - z_S)^2, which is the
map too, mean over channels, upsampled, not smoothed. Score: the map's maximum.

The paper taps EfficientNet-B5 at stride 32 of 768-px images, 24 x 24 positions, with 1024 channels inside: half a
gigabyte per tile. Here a tile has 16 x 16 positions of stride 16 and smaller networks; the paper's are
``--backbone efficientnet_b5 --layers blocks.5 -p teacher_width=1024 -p student_width=1024``. Maps are upsampled
bilinearly where the code's are bicubically. Logarithms of a coupling's scales are clamped at 3.0 where the code's
configuration, which is that for three-dimensional data, has 1.9; its clamp of a coupling's outcome at 1e6 is left out.

Symbols: N batch, C channels, h' x w' positions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.errors import BackboneError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule, Stage
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8
from edge_ad.tiling import Size

REDUCTIONS = (16,)
ENCODING_CHANNELS = 32
KERNELS = (3, 3, 3, 5)  # of the flow's couplings
CLAMP = 3.0  # of the logarithm of scales: c 0.636 atan(s / c) lies within +-c
TEACHER_WIDTH, STUDENT_WIDTH = 64, 256
STUDENT_BLOCKS = 4
ADAM = functools.partial(torch.optim.Adam, eps=1e-8, weight_decay=1e-5)


def positional_encoding(size: Size, channels: int = ENCODING_CHANNELS) -> Tensor:
    """Sines and cosines of column, then of row, at wavelengths up to 10000: (1, channels, h', w')."""
    quarter = channels // 4
    frequency = torch.exp(torch.arange(quarter) * (-torch.log(torch.tensor(10000.0)) / quarter))[:, None]
    parts = []
    for axis, count in ((1, size[1]), (0, size[0])):
        angle = frequency * torch.arange(count)
        waves = torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)  # sine, cosine, sine, ...
        parts.append(waves[:, :, None].expand(-1, -1, size[1]) if axis == 0 else waves[:, None].expand(-1, size[0], -1))
    return torch.cat(parts)[None].contiguous()


class Subnet(nn.Module):
    """What a coupling is told by one half: two convolutions whose outcome begins as zero."""

    def __init__(self, channels: int, out: int, width: int, kernel: int) -> None:
        super().__init__()

        def convolution(before: int, after: int) -> nn.Module:
            return nn.Conv2d(before, after, kernel, padding=kernel // 2, padding_mode="replicate")

        self.layers = nn.Sequential(
            convolution(channels + ENCODING_CHANNELS, width), nn.ReLU(), convolution(width, 2 * out)
        )
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, half: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the scale, and shift, of the other half (N, out, h', w')."""
        said = self.layers(torch.cat([half, encoding], dim=1)) * self.gain
        raw, shift = said.chunk(2, dim=1)
        return CLAMP * 0.636 * torch.atan(raw / CLAMP), shift


class ClampedCoupling(nn.Module):
    """Channels in a fixed random order; then either half is scaled and shifted as the other says."""

    order: Tensor

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.first = channels // 2
        second = channels - self.first
        self.by_second = Subnet(second, self.first, width, kernel)
        self.by_first = Subnet(self.first, second, width, kernel)
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, values: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h', w') to the same, and the logarithm of the Jacobian's determinant per position (N, h', w')."""
        values = values.index_select(1, self.order)
        first, second = values[:, : self.first], values[:, self.first :]
        scale, shift = self.by_second(second, encoding)
        first = first * scale.exp() + shift
        other_scale, shift = self.by_first(first, encoding)
        second = second * other_scale.exp() + shift
        return torch.cat([first, second], dim=1), scale.sum(1) + other_scale.sum(1)


class FlowTeacher(nn.Module):
    """The couplings, one after the other."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(ClampedCoupling(channels, width, kernel) for kernel in KERNELS)

    def forward(self, values: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, C, h', w') and the logarithm of the Jacobian's determinant per position (N, h', w')."""
        determinants = []
        for coupling in self.couplings:
            values, determinant = coupling(values, encoding)
            determinants.append(determinant)
        return values, torch.stack(determinants).sum(0)


class StudentBlock(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        """(N, width, h', w') to the same."""
        changed: Tensor = self.layers(values)
        return values + changed


class ConvStudent(nn.Module):
    """Features and where they lie to the teacher's z; or to more channels, ``out``."""

    def __init__(self, channels: int, width: int, out: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + ENCODING_CHANNELS, width, 3, padding=1),
            nn.LeakyReLU(),
            *(StudentBlock(width) for _ in range(STUDENT_BLOCKS)),
            nn.Conv2d(width, out or channels, 3, padding=1),
        )

    def forward(self, values: Tensor, encoding: Tensor) -> Tensor:
        """(N, C, h', w') to (N, out, h', w')."""
        imitated: Tensor = self.layers(torch.cat([values, encoding], dim=1))
        return imitated


class FlowHead(nn.Module):
    """A head with a flow teacher that knows where features lie."""

    encoding: Tensor

    def __init__(self, channels: int, size: Size, tile_size: Size, teacher_width: int) -> None:
        super().__init__()
        self.register_buffer("encoding", positional_encoding(size), persistent=False)
        self.teacher = FlowTeacher(channels, teacher_width)
        self.upsample = UpsampleSmooth(size, tile_size, sigma_px=0)

    def placed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``features`` (N, C, h', w'), and the encoding for each of them."""
        return features, self.encoding.expand(features.shape[0], -1, -1, -1)  # len() would fix the batch


class AstHead(FlowHead):
    """Teacher, student and how far apart they are."""

    def __init__(self, channels: int, size: Size, tile_size: Size, teacher_width: int, student_width: int) -> None:
        super().__init__(channels, size, tile_size, teacher_width)
        self.student = ConvStudent(channels, student_width)

    def difference(self, features: Tensor) -> Tensor:
        """z_T - z_S (N, C, h', w')."""
        values, encoding = self.placed(features)
        z, _ = self.teacher(values, encoding)
        difference: Tensor = z - self.student(values, encoding)
        return difference

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        difference = self.difference(features)
        anomaly_map = self.upsample((difference * difference).mean(1, keepdim=True))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class AstModel(GradientModel):
    """A method with a flow teacher on one layer of any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`; one layer, of stride 16 where none is named.
        teacher_width, student_width: channels inside the flow's couplings and inside the student.
        config: what else the method is configured by.
        training: see `GradientModel`.

    Raises:
        BackboneError: several layers are named.
    """

    # In int8 a flow's map moved by half its range on real images; bf16 ranks them as float32 does
    head_int8: ClassVar[HeadInt8] = HeadInt8.KEEP
    head_keeps_f32: ClassVar[bool] = False

    def __init__(
        self,
        tile_size: Size,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        teacher_width: int,
        student_width: int,
        config: dict[str, Any],
        **training: Any,
    ) -> None:
        network = Backbone(backbone, layers, weights, REDUCTIONS)
        if len(network.features) != 1:
            tapped = ", ".join(spec.layer for spec in network.features)
            raise BackboneError(f"{self.name} taps one layer, but got {tapped}")
        (self.size,) = network.map_sizes(tile_size)
        widths = {"teacher_width": teacher_width, "student_width": student_width}
        super().__init__(tile_size, network.config | widths | config, **training)
        self.teacher_width, self.student_width = teacher_width, student_width
        self.channels = network.features[0].channels
        self.extractor = network
        self.weights_source = network.source
        self.feature_names = network.feature_names

    def likelihood_loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Of the teacher: negative log-likelihood per position, less a constant."""
        assert isinstance(head, FlowHead)
        z, determinant = head.teacher(*head.placed(inputs[0]))
        loss: Tensor = (0.5 * (z * z).sum(1) - determinant).mean()
        return loss


class Ast(AstModel):
    """AST on any timm backbone.

    Args:
        tile_size, backbone, layers, weights, teacher_width, student_width: see `AstModel`.
        training: see `GradientModel`; teacher and student are trained by the whole schedule each.

    Raises:
        BackboneError: several layers are named.
    """

    name: ClassVar[str] = "ast"
    minimum_tiles: ClassVar[int] = 2
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(ADAM, learning_rate=2e-4, batch_size=32, steps=200),
        "original": Schedule(ADAM, learning_rate=2e-4, batch_size=8, epochs=240),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        teacher_width: int = TEACHER_WIDTH,
        student_width: int = STUDENT_WIDTH,
        **training: Any,
    ) -> None:
        super().__init__(tile_size, backbone, layers, weights, teacher_width, student_width, {}, **training)

    def new_head(self) -> AstHead:
        """See `GradientModel.new_head`. The order of channels is random too, and part of the head's state."""
        return AstHead(self.channels, self.size, self.tile_size, self.teacher_width, self.student_width)

    def stages(self, head: nn.Module) -> Sequence[Stage]:
        """The teacher, then the student."""
        assert isinstance(head, AstHead)
        return [
            Stage("training teacher", head.teacher, self.likelihood_loss),
            Stage("training student", head.student, self.loss),
        ]

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Of the student: mean squared difference."""
        assert isinstance(head, AstHead)
        values, encoding = head.placed(inputs[0])
        with torch.no_grad():
            z, _ = head.teacher(values, encoding)
        loss: Tensor = (z - head.student(values, encoding)).square().mean()
        return loss
