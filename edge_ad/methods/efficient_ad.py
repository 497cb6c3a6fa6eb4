"""EfficientAD: a small teacher, a student that imitates it on normal tiles, an autoencoder that sees a tile as a whole.

Source: Batzner, Heckler and König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies",
arXiv 2303.14535. There is no official code; where the paper is silent this follows nelson1425/EfficientAD. A student of
two halves: one imitates the teacher T (only the hardest 0.1 % of the differences are trained on), the other the
autoencoder A, which imitates T too but through 64 numbers. Map: mean_c (T - S_1)^2 and mean_c (A - S_2)^2, each scaled
so that its 0.9 and 0.995 quantiles on held-out normal tiles are 0 and 0.1, averaged, upsampled, not smoothed. Score:
the map's maximum.

Where this differs from the paper, for tiles:

- Tiles are mirrored at their edges, so that maps have no blind frame (`edge_ad.methods.parts.pdn`); ``-p mirror=false``
  is the paper's geometry, whose frame repeats what is beside it instead of being zero.
- Other tile sizes than 256 keep the autoencoder's code at one position (`edge_ad.methods.parts.autoencoder`).
- The penalty on ordinary photographs needs a folder of them (``-p penalty_images=DIR``). Without it the student is free
  to imitate the teacher on things it never saw, and misses some anomalies; the paper puts it at 0.4 points of AUROC.
- Where nothing changes from tile to tile, what is divided by is bounded: the deviation of a channel of the teacher by
  0.05 from below, the distance of a map's two quantiles by 0.0001.

The teacher's weights come from ``edge-ad distill`` or a file of the community's: there is none to download.

Symbols: N batch, h, w tile size, C = 384 channels, h' x w' positions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edge_ad.errors import WeightsNotFoundError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.autoencoder import Autoencoder
from edge_ad.methods.parts.image_scaling import ScaledImages
from edge_ad.methods.parts.imitation import channel_statistics
from edge_ad.methods.parts.pdn import Layer, PatchDescription, cells, layers_of, positions
from edge_ad.methods.parts.photographs import Photographs, jitter
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.parts.weights import read_tensors
from edge_ad.tiling import Size

# Of ImageNet, for images in [0, 1]
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
HARD_SHARE = 0.001  # of the differences: the mean over those above their 0.999 quantile
QUANTILES = (0.9, 0.995)
AT_UPPER_QUANTILE = 0.1  # of the scaled map
# Where nothing ever changes, such as on a saturated background, all is constant, and divided by its deviation the first
# grain of dust would score a million. Channels of a distilled teacher vary by about 1 over photographs, distances of a
# trained student by 0.001 and more over normal tiles.
SMALLEST_STD = 0.05
SMALLEST_EXTENT = 1e-4  # between the quantiles of a map
_ADAM = functools.partial(torch.optim.Adam, weight_decay=1e-5)


class Teacher(ScaledImages):
    """The frozen network, from images to descriptions."""

    def __init__(self, layers: tuple[Layer, ...], *, mirror: bool) -> None:
        super().__init__(MEAN, STD)
        self.network = PatchDescription(layers, mirror=mirror)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Descriptions (N, C, h', w') float32 of ``image`` uint8 (N, h, w, 3) RGB."""
        return (self.network(self.scaled(image)),)


def distilled_teacher(size: str, weights: str, *, mirror: bool) -> tuple[Teacher, str]:
    """The frozen teacher of ``size``, and where its weights came from: a file, or "none" for random ones.

    Raises:
        WeightsNotFoundError: ``weights`` is "auto" or no file.
        WrongWeightsError, NonFiniteWeightsError: see `PatchDescription.load`.
    """
    if weights == "auto":
        raise WeightsNotFoundError(
            "no distilled teacher can be downloaded: make one with edge-ad distill and pass it as "
            "--weights FILE, or --weights none for a random one"
        )
    teacher = Teacher(layers_of(size), mirror=mirror)
    source = weights
    if weights != "none":
        source = Path(weights).name
        teacher.network.load(read_tensors(Path(weights)), source)
    return teacher.requires_grad_(False).eval(), source


class EfficientAdHead(ScaledImages):
    """Student, autoencoder, and how far apart the three networks are.

    Attributes:
        teacher_mean, teacher_std: (1, C, 1, 1) of the teacher's descriptions of normal tiles.
        low, gain: (1, 2, 1, 1): a map is ``(map - low) * gain``; student's and autoencoder's.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    low: Tensor
    gain: Tensor

    def __init__(self, layers: tuple[Layer, ...], tile_size: Size, *, mirror: bool) -> None:
        super().__init__(MEAN, STD)
        self.channels = layers[-1].channels
        size = positions(tile_size, mirror=mirror)
        self.student = PatchDescription(layers, widen=2, mirror=mirror)
        self.autoencoder = Autoencoder(tile_size, self.channels, size)
        self.register_buffer("teacher_mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, self.channels, 1, 1))
        self.register_buffer("low", torch.zeros(1, 2, 1, 1))
        self.register_buffer("gain", torch.ones(1, 2, 1, 1))
        self.upsample = UpsampleSmooth(size, tile_size, sigma_px=0, cells=cells(mirror=mirror))

    def normalised(self, teacher: Tensor) -> Tensor:
        """``teacher`` (N, C, h', w') at mean 0 and standard deviation 1 per channel."""
        return (teacher - self.teacher_mean) / self.teacher_std

    def imitations(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The student's two halves (N, C, h', w') for ``image`` uint8 (N, h, w, 3): of teacher and autoencoder."""
        both = self.student(self.scaled(image))
        return both[:, : self.channels], both[:, self.channels :]

    def reconstruction(self, image: Tensor) -> Tensor:
        """The autoencoder's (N, C, h', w')."""
        described: Tensor = self.autoencoder(self.scaled(image))
        return described

    def distances(self, image: Tensor, teacher: Tensor) -> Tensor:
        """Unscaled maps (N, 2, h', w'): student to teacher, student to autoencoder."""
        of_teacher, of_autoencoder = self.imitations(image)
        return torch.cat(
            [
                squared_distance(self.normalised(teacher), of_teacher),
                squared_distance(self.reconstruction(image), of_autoencoder),
            ],
            dim=1,
        )

    def forward(self, image: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        scaled = (self.distances(image, teacher) - self.low) * self.gain
        anomaly_map = self.upsample(scaled.mean(1, keepdim=True))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over channels of (a - b)^2, (N, 1, h', w')."""
    difference = a - b
    return (difference * difference).mean(1, keepdim=True)


def hard_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean of the largest `HARD_SHARE` of all squared differences (section 3.2)."""
    squares = (teacher - student).square().flatten()
    return squares.topk(max(1, round(HARD_SHARE * len(squares)))).values.mean()


class EfficientAd(GradientModel):
    """EfficientAD-S or -M.

    Args:
        tile_size: (h, w) pixels.
        weights: of the teacher: a file, or ``"none"`` for random ones.
        size: ``"s"`` or ``"m"``.
        mirror: mirror tiles at their edges instead of leaving a frame blind.
        penalty_images: folder of ordinary photographs; None: no penalty.
        training: see `GradientModel`.

    Raises:
        WeightsNotFoundError: ``weights`` is "auto" or no file.
        WrongWeightsError: of a network of another size.
        DataNotFoundError, EmptyDataError: see `Photographs`.
    """

    name: ClassVar[str] = "efficient_ad"
    minimum_tiles: ClassVar[int] = 2
    head_takes_image: ClassVar[bool] = True
    head_keeps_f32: ClassVar[bool] = False
    holds_out: ClassVar[bool] = True
    minimum_held_out: ClassVar[int] = 2  # quantiles of one image would be that image's alone
    default_schedule: ClassVar[str] = "original"
    feature_names = ("description",)
    schedules = {  # noqa: RUF012 - read only
        "original": Schedule(_ADAM, learning_rate=1e-4, batch_size=1, steps=70_000, decay_at=0.95),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        weights: str = "auto",
        size: str = "s",
        mirror: bool = True,
        penalty_images: str | None = None,
        **training: Any,
    ) -> None:
        super().__init__(tile_size, {"size": size, "mirror": mirror, "penalty_images": penalty_images}, **training)
        self.layers = layers_of(size)
        self.mirror = mirror
        self.photographs = Photographs(Path(penalty_images), tile_size) if penalty_images else None
        positions(tile_size, mirror=mirror)
        self.teacher, self.weights_source = distilled_teacher(size, weights, mirror=mirror)
        self.extractor = self.teacher

    def new_head(self) -> EfficientAdHead:
        """See `GradientModel.new_head`."""
        return EfficientAdHead(self.layers, self.tile_size, mirror=self.mirror)

    def prepare(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Mean and standard deviation of the teacher's channels."""
        assert isinstance(head, EfficientAdHead)
        mean, std = channel_statistics(description for _, description in batches)
        head.teacher_mean.copy_(mean)
        head.teacher_std.copy_(std.clamp(min=SMALLEST_STD))

    def drawn(self, inputs: Inputs) -> Inputs:
        """With the tiles in changed colours, what the teacher says of those, and, for a penalty, photographs."""
        image, _ = inputs
        photographs = [self.photographs.draw(len(image), image.device)] if self.photographs else []
        changed = jitter(image)
        with torch.no_grad():
            described = self.extractor(changed)[0]
        return (*inputs, changed, described, *photographs)

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Hard loss and penalty of the student, and what trains the autoencoder and the student's other half."""
        assert isinstance(head, EfficientAdHead)
        image, description, changed, described, *photographs = inputs
        of_teacher, _ = head.imitations(image)
        losses = [hard_loss(head.normalised(description), of_teacher)]
        losses += [head.imitations(shown)[0].square().mean() for shown in photographs]
        reconstructed = head.reconstruction(changed)
        losses.append((head.normalised(described) - reconstructed).square().mean())
        losses.append((reconstructed - head.imitations(changed)[1]).square().mean())
        return torch.stack(losses).sum()

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Fit ``low`` and ``gain`` to the quantiles of either map over all its values."""
        assert isinstance(head, EfficientAdHead)
        low, gain = quantile_scale(torch.cat([head.distances(image, described).cpu() for image, described in batches]))
        head.low.copy_(low)
        head.gain.copy_(gain)


def quantile_scale(maps: Tensor) -> tuple[Tensor, Tensor]:
    """``low`` and ``gain`` (1, K, 1, 1) that bring the `QUANTILES` of maps (N, K, h', w') to 0 and 0.1."""
    # numpy's quantiles: torch refuses more than 2^24 values
    low, high = torch.from_numpy(np.quantile(maps.numpy(), QUANTILES, axis=(0, 2, 3)).astype(np.float32))
    gain = AT_UPPER_QUANTILE / (high - low).clamp(min=SMALLEST_EXTENT)
    return low.view(1, -1, 1, 1), gain.view(1, -1, 1, 1)
