"""MixedTeacher: a Reduced Student finds defects, the student of a second, different teacher confirms where they are.

Source: Thomine et al., "MixedTeacher", arXiv 2306.09859, section 4. Loss: that of both students, the second's times
alpha (eq. 8). Map: the first student's, times the second's brought to the range it has on normal tiles. Score: as
`edge_ad.methods.reduced_student`, which also tells how layers, pooling and distances are read.

The first teacher is ResNet18 before its first block and after its first two stages; the second EfficientNet-B0 after
its blocks 5 and 6, timm's ``blocks.4`` and ``blocks.5``. Its student has one convolution for each of them, of B0's own
widths; kernels and widths are not in the paper. (The authors' code takes B0 itself with the teacher's weights, whose
distances begin at zero.)

Eq. 11 prints A_first (max A_second - min A_second) A_second, and the text calls its last factor a normalisation. Read
as (A - min) / (max - min) with the range of each image, the two cancel to A - min; in either form a map depends on the
largest value in the image, and tiles of one image cannot be compared. Here ``low`` and ``extent`` of the normalisation
are constants, fitted on held-out normal tiles, and the factor, which would only favour tiles that are noisy when
normal, is left out: A_first max(0, A_second - low) / extent. ``-p extent_of_tile=true`` is eq. 11 as printed.

Symbols: N tiles, C channels, h, w tile size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import Backbone, FeatureSpec
from edge_ad.methods.parts.image_scaling import ScaledImages
from edge_ad.methods.parts.imitation import SGD
from edge_ad.methods.parts.residual_block import initialise
from edge_ad.methods.reduced_student import (
    PooledTeacher,
    ReducedResNet,
    TotalDistance,
    half_distances,
    halvings,
    tile_score,
)
from edge_ad.tiling import Size

SMALLEST_EXTENT = 1e-2  # of a map in [0, 4]: below it lies rounding, which division would blow up
TRUNK = ((32, 2), (16, 2), (24, 4), (40, 8), (80, 16))  # channels and stride of B0's stem and blocks 1 to 4


class TwoTeachers(nn.Module):
    """The maps of both, the first's before the second's."""

    def __init__(self, first: PooledTeacher, second: Backbone) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h', w') float32 of ``image`` uint8 (N, h, w, 3) RGB."""
        return [*self.first(image), *self.second(image)]


class SecondStudent(ScaledImages):
    """One 3x3 convolution per block of EfficientNet-B0 down to the first tap, and one per tap, without its ReLU.

    Args:
        features: the teacher's taps.
        mean, std: normalisation of images in [0, 1] per channel (1, 3, 1, 1).
    """

    def __init__(self, features: Sequence[FeatureSpec], mean: Tensor, std: Tensor) -> None:
        super().__init__(mean, std)
        channels, reduction = 3, 1
        trunk: list[nn.Module] = []
        for width, stride in TRUNK:
            if stride <= features[0].reduction:
                trunk += [*_convolution(channels, width, stride // reduction), nn.ReLU()]
                channels, reduction = width, stride
        taps: list[nn.Module] = []
        for spec in features:
            activation = [nn.ReLU()] if taps else []
            taps.append(nn.Sequential(*activation, *_convolution(channels, spec.channels, spec.reduction // reduction)))
            channels, reduction = spec.channels, spec.reduction
        self.trunk = nn.Sequential(*trunk)
        self.taps = nn.ModuleList(taps)
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps (N, C_i, h', w') of ``image`` uint8 (N, h, w, 3)."""
        x = self.trunk(self.scaled(image))
        return [x := tap(x) for tap in self.taps]


def _convolution(channels_in: int, channels: int, factor: int) -> list[nn.Module]:
    """A 3x3 convolution and its normalisation, at 1 / ``factor`` of the resolution."""
    pools, stride = halvings(factor)
    return [*pools, nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels)]


class MixedTeacherHead(nn.Module):
    """Both students and the product of their maps.

    Attributes:
        low, extent: least value, and range, of the second student's map on normal tiles.
    """

    low: Tensor
    extent: Tensor

    def __init__(self, teachers: TwoTeachers, tile_size: Size, *, extent_of_tile: bool, mean_score: bool) -> None:
        super().__init__()
        first, second = teachers.first, teachers.second
        self.extent_of_tile = extent_of_tile
        self.mean_score = mean_score
        self.first = ReducedResNet(first.channels, first.reductions, first.network.mean, first.network.std)
        self.second = SecondStudent(second.features, second.mean, second.std)
        self.total_first = TotalDistance(first.sizes, tile_size)
        self.total_second = TotalDistance(second.map_sizes(tile_size), tile_size)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("extent", torch.ones(()))

    def distances(self, image: Tensor, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """`half_distances` of the first and of the second student, of ``image`` uint8 (N, h, w, 3)."""
        first, second = self.first(image), self.second(image)
        return half_distances(features[: len(first)], first), half_distances(features[len(first) :], second)

    def maps(self, image: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A_first and A_second (N, 1, h, w) of eq. 10 and 9."""
        first, second = self.distances(image, features)
        return self.total_first(first), self.total_second(second)

    def forward(self, image: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        first, second = self.maps(image, features)
        if self.extent_of_tile:
            # The least value by a maximum: quantisation knows it as an operation of measurements
            extent = second.amax((1, 2, 3), keepdim=True) - (0 - (0 - second).amax((1, 2, 3), keepdim=True))
            anomaly_map = first * (extent * second)
        else:
            anomaly_map = first * ((second - self.low) / self.extent).clamp(min=0)
        return anomaly_map, tile_score(anomaly_map, mean=self.mean_score)


class MixedTeacher(GradientModel):
    """MixedTeacher on any two timm backbones.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: of the first teacher, see `Backbone`. Where no layers are named: what enters the
            first block, and the layers of stride 4 and 8.
        second_backbone, second_layers: of the second teacher.
        second_weights: of the second teacher; None for ``"none"`` where ``weights`` is that, and ``"auto"`` elsewhere.
        alpha: weight of the second student's loss. The students share no parameter, so that it only scales the second's
            steps. Where None the paper's 0.1 for schedule "original", else 1: after few steps 0.1 leaves that student
            nearly as it was.
        extent_of_tile: combine the maps by eq. 11 as printed; tiles can then not be compared.
        mean_score: score a tile by the mean of its map, as eq. 12, else by its maximum.
        training: see `GradientModel`.

    Raises:
        InputError: ``alpha`` is not positive.
    """

    name: ClassVar[str] = "mixed_teacher"
    minimum_tiles: ClassVar[int] = 2
    holds_out: ClassVar[bool] = True  # where the schedule keeps its last state, too
    head_takes_image: ClassVar[bool] = True
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(SGD, learning_rate=3.2, batch_size=32, steps=200, keep_best=True, decay_at=0.75),  # see stfpm
        "original": Schedule(SGD, learning_rate=0.4, batch_size=16, epochs=200, keep_best=True),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = "resnet18",
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        second_backbone: str = "efficientnet_b0",
        second_layers: tuple[str, ...] = ("blocks.4", "blocks.5"),
        second_weights: str | None = None,
        alpha: float | None = None,
        extent_of_tile: bool = False,
        mean_score: bool = False,
        **training: Any,
    ) -> None:
        if alpha is None:
            alpha = 0.1 if training.get("schedule") == "original" else 1.0
        if not alpha > 0:
            raise InputError(f"mixed_teacher: expected a positive alpha, but got {alpha}")
        second_weights = second_weights or ("none" if weights == "none" else "auto")
        first = Backbone(backbone, layers, weights, (4, 8), before_blocks=True)
        second = Backbone(second_backbone, second_layers, second_weights)
        second.map_sizes(tile_size)
        config = {
            **first.config,
            "second_backbone": second_backbone,
            "second_layers": [spec.layer for spec in second.features],
            "alpha": alpha,
            "extent_of_tile": extent_of_tile,
            "mean_score": mean_score,
        }
        super().__init__(tile_size, config, **training)
        self.alpha = alpha
        self.extent_of_tile = extent_of_tile
        self.mean_score = mean_score
        self.teachers = TwoTeachers(PooledTeacher(first, tile_size), second)
        self.extractor = self.teachers
        self.weights_source = "; ".join(dict.fromkeys((first.source, second.source)))
        self.feature_names = (
            *(f"first_{index}" for index in range(len(first.features))),
            *(f"second_{index}" for index in range(len(second.features))),
        )

    def new_head(self) -> MixedTeacherHead:
        """See `GradientModel.new_head`."""
        return MixedTeacherHead(
            self.teachers, self.tile_size, extent_of_tile=self.extent_of_tile, mean_score=self.mean_score
        )

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Mean distance per layer, summed over layers, the second student's times alpha (eq. 8)."""
        assert isinstance(head, MixedTeacherHead)
        image, *features = inputs
        first, second = (torch.stack([d.mean() for d in part]).sum() for part in head.distances(image, features))
        return first + self.alpha * second

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Fit ``low`` and ``extent``."""
        assert isinstance(head, MixedTeacherHead)
        ranges = [torch.stack(head.maps(image, features)[1].aminmax()) for image, *features in batches]
        lows, highs = torch.stack(ranges).unbind(1)
        head.low.copy_(lows.min())
        head.extent.copy_((highs.max() - lows.min()).clamp(min=SMALLEST_EXTENT))
