"""EfficientAD-AST: AST's flow as the teacher of EfficientAD's student and autoencoder, all on features of a backbone.

Source: the master's thesis that joined the two, its final choices: mean squared errors instead of hard features, no
quantiles of the maps, no padding, a penalty on ordinary photographs. Each choice was made against one of EfficientAD's,
which are kept as options: ``-p hard=true``, ``-p scaled_maps=true``. Map: 0.5 mean_c (T - S_1)^2 + 0.5 mean_c
(A - S_2)^2, upsampled, not smoothed. Score: its maximum.

Where this differs from the thesis's code: training ends at the lowest loss on held-out training images, where theirs
looked at the test set; the frozen backbone stays in evaluation mode; and the autoencoder's last convolution is linear,
since what it learns has both signs (``-p rectified=true`` is theirs). It has no bottleneck in space, theirs neither: it
sees no missing parts, as EfficientAD's does.

Symbols: N batch, C channels, h' x w' positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.methods.ast import (
    ADAM,
    ENCODING_CHANNELS,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    AstModel,
    ConvStudent,
    FlowHead,
)
from edge_ad.methods.efficient_ad import hard_loss, quantile_scale, squared_distance
from edge_ad.methods.gradient import Inputs, Schedule, Stage
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE
from edge_ad.methods.parts.batch_statistics import left_alone
from edge_ad.methods.parts.photographs import Photographs
from edge_ad.tiling import Size

ENCODER = (32, 32, 64, 64, 64, 64)
DECODER_STEPS = 3  # each doubles the positions
DECODER_WIDTH = 64
DROPOUT = 0.2


class FeatureAutoencoder(nn.Module):
    """Narrow in channels and wide in space: features and where they lie to the teacher's z."""

    def __init__(self, channels: int, *, rectified: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels + ENCODING_CHANNELS
        for out in ENCODER:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        for _ in range(DECODER_STEPS):
            convolution = nn.Conv2d(width, DECODER_WIDTH, 3, padding=1)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.ReLU(), nn.Dropout(DROPOUT)]
            width = DECODER_WIDTH
        last = nn.Conv2d(width, channels, 3, padding=1)
        layers += [last, nn.ReLU(), nn.Dropout(DROPOUT)] if rectified else [last]
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(2**DECODER_STEPS))

    def forward(self, values: Tensor, encoding: Tensor) -> Tensor:
        """(N, C, h', w') to the same."""
        made: Tensor = self.layers(torch.cat([values, encoding], dim=1))
        return made


class EfficientAdAstHead(FlowHead):
    """Teacher, student of two halves, autoencoder, and how far apart they are.

    Attributes:
        low, gain: (1, 2, 1, 1): a map is ``(map - low) * gain``; student's and autoencoder's.
    """

    low: Tensor
    gain: Tensor

    def __init__(self, model: EfficientAdAst) -> None:
        super().__init__(model.channels, model.size, model.tile_size, model.teacher_width)
        self.channels = model.channels
        self.student = ConvStudent(model.channels, model.student_width, out=2 * model.channels)
        self.autoencoder = FeatureAutoencoder(model.channels, rectified=model.rectified)
        self.register_buffer("low", torch.zeros(1, 2, 1, 1))
        self.register_buffer("gain", torch.ones(1, 2, 1, 1))

    def imitations(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The student's two halves (N, C, h', w'): of teacher and autoencoder."""
        both = self.student(*self.placed(features))
        return both[:, : self.channels], both[:, self.channels :]

    def distances(self, features: Tensor) -> Tensor:
        """Unscaled maps (N, 2, h', w'): student to teacher, student to autoencoder."""
        z, _ = self.teacher(*self.placed(features))
        of_teacher, of_autoencoder = self.imitations(features)
        made = self.autoencoder(*self.placed(features))
        return torch.cat([squared_distance(z, of_teacher), squared_distance(made, of_autoencoder)], dim=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        scaled = (self.distances(features) - self.low) * self.gain
        anomaly_map = self.upsample(scaled.mean(1, keepdim=True))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class EfficientAdAst(AstModel):
    """EfficientAD-AST on any timm backbone.

    Args:
        tile_size, backbone, layers, weights, teacher_width, student_width: see `AstModel`.
        penalty_images: folder of ordinary photographs; None: no penalty.
        hard: train the student on the hardest 0.1 % of the differences.
        scaled_maps: scale both maps by their quantiles on held-out tiles.
        rectified: end the autoencoder in a ReLU and a dropout.
        training: see `GradientModel`; the teacher, then student and autoencoder, by the whole schedule each. The
            thesis's "original" is that of the latter; its teacher has 240 epochs.

    Raises:
        BackboneError: several layers are named.
        DataNotFoundError, EmptyDataError: see `Photographs`.
    """

    name: ClassVar[str] = "efficient_ad_ast"
    minimum_tiles: ClassVar[int] = 2
    holds_out: ClassVar[bool] = True
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(ADAM, learning_rate=2e-4, batch_size=32, steps=200, keep_best=True),
        "original": Schedule(ADAM, learning_rate=2e-4, batch_size=8, epochs=100, keep_best=True),
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
        penalty_images: str | None = None,
        hard: bool = False,
        scaled_maps: bool = False,
        rectified: bool = False,
        **training: Any,
    ) -> None:
        self.hard, self.scaled_maps, self.rectified = hard, scaled_maps, rectified
        switches = {"penalty_images": penalty_images, "hard": hard, "scaled_maps": scaled_maps, "rectified": rectified}
        super().__init__(tile_size, backbone, layers, weights, teacher_width, student_width, switches, **training)
        self.photographs = Photographs(Path(penalty_images), tile_size) if penalty_images else None

    def new_head(self) -> EfficientAdAstHead:
        """See `GradientModel.new_head`. The order of channels is random too, and part of the head's state."""
        return EfficientAdAstHead(self)

    def stages(self, head: nn.Module) -> Sequence[Stage]:
        """The teacher, then student and autoencoder."""
        assert isinstance(head, EfficientAdAstHead)
        learners = nn.ModuleList([head.student, head.autoencoder])
        return [
            Stage("training teacher", head.teacher, self.likelihood_loss),
            Stage("training student", learners, self.loss, self.drawn),
        ]

    def drawn(self, inputs: Inputs) -> Inputs:
        """With features of photographs, for a penalty."""
        if not self.photographs:
            return inputs
        photographs = self.photographs.draw(len(inputs[0]), self.device)
        return (*inputs, self.extract(photographs)[0])

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Of student and autoencoder: both to the teacher, the student's other half to the autoencoder, and penalty."""
        assert isinstance(head, EfficientAdAstHead)
        features, *photographs = inputs
        placed = head.placed(features)
        with torch.no_grad():
            z, _ = head.teacher(*placed)
        of_teacher, of_autoencoder = head.imitations(features)
        made = head.autoencoder(*placed)
        losses = [hard_loss(z, of_teacher) if self.hard else (z - of_teacher).square().mean()]
        losses += [(z - made).square().mean(), (made - of_autoencoder).square().mean()]
        for shown in photographs:
            with left_alone(head.student):  # inference normalises by what normal tiles look like
                losses.append(head.imitations(shown)[0].square().mean())
        return torch.stack(losses).sum()

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Fit ``low`` and ``gain``, where maps are scaled."""
        assert isinstance(head, EfficientAdAstHead)
        if self.scaled_maps:
            low, gain = quantile_scale(torch.cat([head.distances(features).cpu() for (features,) in batches]))
            head.low.copy_(low)
            head.gain.copy_(gain)
