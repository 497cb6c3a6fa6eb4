"""Uninformed Students: several students learn to describe patches of normal tiles as a teacher does; where they err, or
disagree, is an anomaly.

Source: Bergmann et al., "Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings",
arXiv 1911.02357; there is no official code. Students see patches of 17, 33 or 65 pixels and begin with other weights
each. Loss of a student S_i: mean over positions of |S_i - T|^2, T the teacher's description at mean 0 and standard
deviation 1 per channel. With M students and their mean S: regression error e = |S - T|^2, predictive variance
v = (1 / M) sum_i |S_i - S|^2. Map: e and v, each less its mean over held-out normal tiles and divided by its standard
deviation there, summed, averaged over the sizes of patches, upsampled, not smoothed. Score: the map's maximum.

Where this differs from the paper:

- The teacher is no network of the students' own kind, distilled on patches for each of their sizes, but one for all:
  two layers of a backbone, or EfficientAD's from ``edge-ad distill`` (``--backbone pdn_s --weights FILE``), which sees
  no more than 33 pixels. A backbone's layers see beyond a student's patch; what follows from there is an error of the
  normal tiles too, by which the map is scaled.
- A channel that hardly varies on normal tiles, as of a backbone's some do, would be scaled to rounding and chance
  alone: none is divided by less than a tenth of the root mean square of the channels' standard deviations.
- Positions lie as far apart as the teacher's, 4 pixels as a rule, instead of one
  (`edge_ad.methods.parts.patch_network`).
- Patches of 17 pixels are left out, ``-p fields=17,33,65`` has them: nothing in their network is pooled, and they cost
  five times what the other two do together.

Symbols: N batch, h, w tile size, F sizes of patches, M students, C channels, h' x w' positions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_ad.errors import BackboneError, InputError
from edge_ad.methods.efficient_ad import Teacher, distilled_teacher
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.image_scaling import ScaledImages
from edge_ad.methods.parts.imitation import channel_statistics
from edge_ad.methods.parts.local_averages import LocalAverages
from edge_ad.methods.parts.patch_network import WIDTH, PatchNetworks
from edge_ad.methods.parts.pdn import STEP_PX, layers_of, positions
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8
from edge_ad.tiling import Size

REDUCTIONS = (4, 8)  # ResNet's layer1 and layer2
FIELDS = (33, 65)
STUDENTS = 3
# At a location that never changes, such as a saturated background, the first grain of dust would score 1e12
STILLEST = 0.01  # standard deviation of a teacher's channel, of the root mean square of the channels' means
SMALLEST_SPREAD = 0.01  # of squared errors and of variances
QUIETEST = 0.1  # likewise, of their standard deviations: channels that vary less are not made to vary as the others
DISTILLED = "pdn_"  # begins the names of EfficientAD's teachers among backbones
_ADAM = functools.partial(torch.optim.Adam, weight_decay=1e-5)


class StudentsHead(ScaledImages):
    """The students, and how far they are from the teacher and from each other.

    Attributes:
        teacher_mean, teacher_std: (1, C, 1, 1) of the teacher's descriptions of normal tiles.
        usual, spread: (1, 2 F, 1, 1) means and standard deviations of errors and variances of normal tiles.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, model: UninformedStudents) -> None:
        super().__init__(model.teacher.mean, model.teacher.std)
        channels, size, step = model.channels, model.positions, model.step
        self.students = nn.ModuleList(
            PatchNetworks(
                field, model.tile_size, size, step, channels, width=model.width, copies=model.students_per_field
            )
            for field in model.fields
        )
        self.register_buffer("teacher_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, channels, 1, 1))
        self.register_buffer("usual", torch.zeros(1, 2 * len(model.fields), 1, 1))
        self.register_buffer("spread", torch.ones(1, 2 * len(model.fields), 1, 1))
        self.upsample = UpsampleSmooth(size, model.tile_size, sigma_px=0, cells=((step - 1) / 2, step))

    def normalised(self, teacher: Tensor) -> Tensor:
        """``teacher`` (N, C, h', w') at mean 0 and standard deviation 1 per channel."""
        return (teacher - self.teacher_mean) / self.teacher_std

    def imitations(self, image: Tensor) -> list[Tensor]:
        """The students' descriptions (N, M, C, h', w') of ``image`` uint8 (N, h, w, 3), for each size of patches."""
        scaled = self.scaled(image)
        return [students(scaled) for students in self.students]

    def surprises(self, image: Tensor, teacher: Tensor) -> Tensor:
        """Unscaled maps (N, 2 F, h', w'): regression error, then predictive variance, for each size of patches."""
        target = self.normalised(teacher)
        maps = []
        for described in self.imitations(image):
            mean = described.mean(1)
            error = mean - target
            # Of differences: the paper's mean of squares less the square of the mean is lost in rounding
            apart = described - mean.unsqueeze(1)
            maps += [(error * error).sum(1, keepdim=True), (apart * apart).sum(2).mean(1, keepdim=True)]
        return torch.cat(maps, dim=1)

    def forward(self, image: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        scaled = (self.surprises(image, teacher) - self.usual) / self.spread
        anomaly_map = self.upsample(scaled.sum(1, keepdim=True) / len(self.students))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class UninformedStudents(GradientModel):
    """Uninformed Students on any timm backbone, or on a distilled teacher.

    Args:
        tile_size: (h, w) pixels.
        backbone: of the teacher, any timm network; or ``pdn_s`` or ``pdn_m``, EfficientAD's.
        layers: of the backbone, see `Backbone`; those of stride 4 and 8 where none are named.
        weights: of the teacher; see `Backbone`. Of EfficientAD's a file, or ``"none"`` for random ones.
        fields: sizes of patches, some of 17, 33, 65.
        students: for each of them.
        width: channels of their first convolutions; half of it costs a quarter.
        training: see `GradientModel`.

    Raises:
        InputError: no or unknown fields, less than two students, no width, or a tile too small for a field.
        BackboneError: layers of a distilled teacher, or a step between positions that is no power of two.
        WeightsNotFoundError, WrongWeightsError: see `distilled_teacher`.
    """

    name: ClassVar[str] = "uninformed_students"
    minimum_tiles: ClassVar[int] = 2
    head_takes_image: ClassVar[bool] = True
    holds_out: ClassVar[bool] = True
    default_schedule: ClassVar[str] = "original"
    # Of image AUROC and AUPRO on real images: 96.8 and 62.4 as trained, 97.0 and 62.4 with the head in bf16, 96.5 and
    # 60.0 with its convolutions in int8
    head_int8: ClassVar[HeadInt8] = HeadInt8.KEEP
    head_keeps_f32: ClassVar[bool] = False
    feature_names = ("description",)
    schedules = {  # noqa: RUF012 - read only
        "original": Schedule(_ADAM, learning_rate=1e-4, batch_size=1, epochs=100),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        fields: tuple[int, ...] = FIELDS,
        students: int = STUDENTS,
        width: int = WIDTH,
        **training: Any,
    ) -> None:
        if not fields or students < 2 or width < 1:
            raise InputError(
                f"{self.name}: expected fields, at least two students, whose variance is looked at, and a positive "
                f"width, but got fields {list(fields)}, students {students}, width {width}"
            )
        self.teacher: Backbone | Teacher
        if backbone.startswith(DISTILLED):
            named = self._distilled(tile_size, backbone, layers, weights)
        else:
            named = self._backbone(tile_size, backbone, layers, weights)
        config = named | {"fields": list(fields), "students": students, "width": width}
        super().__init__(tile_size, config, **training)
        self.fields, self.students_per_field, self.width = tuple(fields), students, width
        with torch.device("meta"):
            for field in fields:  # says what is wrong with them
                PatchNetworks(field, tile_size, self.positions, self.step, self.channels, width=width, copies=students)

    def _backbone(self, tile_size: Size, name: str, layers: Sequence[str], weights: str) -> dict[str, Any]:
        network = Backbone(name, layers, weights, REDUCTIONS)
        self.positions = network.map_sizes(tile_size)[0]
        self.step = network.features[0].reduction
        if self.step & (self.step - 1):
            raise BackboneError(f"layer {network.features[0].layer} of {name} has stride {self.step}, no power of two")
        self.channels = sum(spec.channels for spec in network.features)
        self.teacher, self.weights_source = network, network.source
        self.extractor = LocalAverages(network, self.positions).eval()
        return network.config

    def _distilled(self, tile_size: Size, name: str, layers: Sequence[str], weights: str) -> dict[str, Any]:
        if layers:
            raise BackboneError(f"{name} is described by its last layer; name no layers")
        size = name.removeprefix(DISTILLED)
        self.positions, self.step = positions(tile_size, mirror=True), STEP_PX
        self.channels = layers_of(size)[-1].channels
        self.teacher, self.weights_source = distilled_teacher(size, weights, mirror=True)
        self.extractor = self.teacher
        return {"backbone": name, "layers": []}

    def new_head(self) -> StudentsHead:
        """See `GradientModel.new_head`."""
        return StudentsHead(self)

    def prepare(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Mean and standard deviation of the teacher's channels."""
        assert isinstance(head, StudentsHead)
        mean, std = channel_statistics(description for _, description in batches)
        head.teacher_mean.copy_(mean)
        usual, deviation = (values.square().mean().sqrt().item() for values in (mean, std))
        head.teacher_std.copy_(std.clamp(min=max(STILLEST * usual, QUIETEST * deviation)))

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Of all students: mean over positions of the squared distance to the teacher."""
        assert isinstance(head, StudentsHead)
        image, description = inputs
        target = head.normalised(description).unsqueeze(1)
        losses = [(described - target).square().sum(2).mean((0, 2, 3)) for described in head.imitations(image)]
        return torch.cat(losses).sum()

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Mean and standard deviation of errors and variances."""
        assert isinstance(head, StudentsHead)
        usual, spread = channel_statistics(head.surprises(image, description) for image, description in batches)
        head.usual.copy_(usual)
        head.spread.copy_(spread.clamp(min=SMALLEST_SPREAD))
