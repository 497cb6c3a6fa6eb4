"""CutPaste: features that tell pasted patches from whole ones, and how far they lie from those of normal tiles.

Source: Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", arXiv 2104.04015;
community code Runinho/pytorch-cutpaste. A network learns to classify patches of 64 pixels as normal, pasted or scarred
(`edge_ad.methods.parts.pasting`); the classifier is then dropped, and a Gaussian is fitted to the embeddings of normal
patches. Map: their Mahalanobis distance, upsampled, smoothed. Score: its maximum.

Two forms are in the paper: one embedding per image, which makes no map, and one per patch of 64 pixels, which is slid
over the image. Here it is the second, in one pass: a tile is divided into such patches, each is left alone, pasted or
scarred by chance, and every position of the feature map is classified by what was pasted there. Sliding a network of
its own over a 256-px tile in steps of 4 would be 2401 passes.

The paper trains the whole network. Here the pretrained network is frozen and shared by all tiles, and a tile model
learns a projection of its features, two 1 x 1 convolutions: a network of its own for every tile would be 45 MB and a
pass each, with nothing shared. What it finds is then the pretrained network's: on real images (BSData, 70
of them) the Gaussian of an untrained projection had an image AUROC of 98.6 and an AUPRO of 71.2, that of one trained
for 100 steps of 16 tiles 99.3 and 71.5, and 97.4 and 70.9 with another seed.

Pasted tiles are shown to the extractor one by one, also where it otherwise sees whole images; the Gaussian is of the
features that tiles will have.

Cross entropy weighs the classes alike, as the paper's batches have as many of each. The learning rate falls to a tenth
for the last quarter of the steps, where the paper's follows a cosine.

Symbols: N batch, C channels of the features, E of the embedding, P = h' x w' positions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.local_averages import LocalAverages
from edge_ad.methods.parts.pasting import Paste, draw_pastes, paste
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8, TileStream
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import Size

VARIANTS = {
    "3way": (Paste.NONE, Paste.PATCH, Paste.SCAR),
    "patch": (Paste.NONE, Paste.PATCH),
    "scar": (Paste.NONE, Paste.SCAR),
}
REDUCTIONS = (8, 16)
PATCH_PX = 64
HIDDEN, EMBEDDING = 512, 128
SHRINKAGE = 0.01  # of the covariance towards a multiple of the identity
SMOOTHING_SIGMA_PX = 4.0
_SGD = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=3e-5)


class CutPasteHead(nn.Module):
    """The projection, the classifier it is trained with, and the Gaussian.

    With W^T W the inverse covariance, the Mahalanobis distance is |W (x - m)|: no difference of large numbers.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int, classes: int, positions: Size, tile_size: Size) -> None:
        super().__init__()
        self.positions = positions
        self.project = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, 1, bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, EMBEDDING, 1),
        )
        self.classify = nn.Conv2d(EMBEDDING, classes, 1)  # not exported
        self.register_buffer("mean", torch.zeros(EMBEDDING))
        self.register_buffer("whitening", torch.eye(EMBEDDING))
        self.upsample = UpsampleSmooth(positions, tile_size, SMOOTHING_SIGMA_PX)

    def describe(self, features: Tensor) -> Tensor:
        """Embeddings (N, P, E) of ``features`` (N, C, h', w')."""
        described: Tensor = self.project(features).flatten(2).transpose(1, 2)
        return described

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        whitened = (self.describe(features) - self.mean) @ self.whitening.T
        distance = (whitened * whitened).sum(2).sqrt()
        anomaly_map = self.upsample(distance.reshape(-1, 1, *self.positions))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class CutPaste(GradientModel):
    """CutPaste on any timm backbone, frozen.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`; the layers of stride 8 and 16 where none are named.
        variant: ``"3way"``: patches are normal, pasted or scarred; ``"patch"`` or ``"scar"``: normal, or that.
        training: see `GradientModel`.

    Raises:
        InputError: no such variant.
    """

    name: ClassVar[str] = "cutpaste"
    minimum_tiles: ClassVar[int] = 2
    head_int8: ClassVar[HeadInt8] = HeadInt8.KEEP
    feature_names = ("embedding",)
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(_SGD, learning_rate=0.03, batch_size=32, steps=200, decay_at=0.75),
        "original": Schedule(_SGD, learning_rate=0.03, batch_size=64, steps=65_536, decay_at=0.75),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        variant: str = "3way",
        **training: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise InputError(f"cutpaste has no variant {variant!r}; it has {', '.join(VARIANTS)}")
        network = Backbone(backbone, layers, weights, REDUCTIONS)
        super().__init__(tile_size, network.config | {"variant": variant}, **training)
        self.kinds = torch.tensor(VARIANTS[variant])
        self.positions = network.map_sizes(tile_size)[0]
        self.patches = tuple(max(1, round(size / PATCH_PX)) for size in tile_size)
        self.channels = sum(spec.channels for spec in network.features)
        self.extractor = LocalAverages(network, self.positions).eval()
        self.weights_source = network.source

    def new_head(self) -> CutPasteHead:
        """See `GradientModel.new_head`."""
        return CutPasteHead(self.channels, len(self.kinds), self.positions, self.tile_size)

    def fit(self, tiles: TileStream, seed: int, progress: Progress = no_progress) -> nn.Module:
        """See `GradientModel.fit`: pasting needs the tiles, which the head itself does not take."""
        return super().fit(replace(tiles, with_image=True), seed, progress)

    def drawn(self, inputs: Inputs) -> Inputs:
        """Features of tiles with pastes, and the class of every position."""
        pasted, labels = self.pasted(inputs[0])
        with torch.no_grad():
            (features,) = self.extractor(pasted)
        return features, labels

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Cross entropy of what was pasted at every position, the mean over classes of the mean over positions."""
        assert isinstance(head, CutPasteHead)
        features, labels = inputs
        logits = head.classify(head.project(features))
        counts = torch.bincount(labels.flatten(), minlength=len(self.kinds))
        return F.cross_entropy(logits.float(), labels, weight=1 / counts.clamp(min=1))

    def pasted(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """``tiles`` uint8 (N, h, w, 3) with a paste on some of their patches, and the class of every position.

        Classes int64 (N, h', w') count through `VARIANTS`; a position of which any pixel was pasted has the paste's.
        """
        drawn = torch.randint(len(self.kinds), (len(tiles), *self.patches))
        changed, kinds = paste(tiles, draw_pastes(self.kinds[drawn], self.tile_size))
        classes = torch.searchsorted(self.kinds.to(kinds.device, non_blocking=True), kinds).float()
        stride = (self.tile_size[0] // self.positions[0], self.tile_size[1] // self.positions[1])
        return changed, F.max_pool2d(classes[:, None], stride)[:, 0].long()

    def finish(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """The Gaussian of the embeddings of all positions of normal tiles."""
        assert isinstance(head, CutPasteHead)
        count, total = 0, torch.zeros(EMBEDDING, dtype=torch.float64, device=self.device)
        products = torch.zeros(EMBEDDING, EMBEDDING, dtype=torch.float64, device=self.device)
        for inputs in batches:
            vectors = head.describe(inputs[-1]).flatten(0, 1).double()
            count += len(vectors)
            total += vectors.sum(0)
            products += vectors.T @ vectors
        mean = total / count
        head.mean.copy_(mean)
        head.whitening.copy_(whitening(products / count - torch.outer(mean, mean)))


def whitening(covariance: Tensor) -> Tensor:
    """W (E, E) with W^T W the inverse of ``covariance`` (E, E) shrunk by `SHRINKAGE` towards its mean variance."""
    variance = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    shrunk = (1 - SHRINKAGE) * values.clamp(min=0) + SHRINKAGE * variance
    found: Tensor = (vectors / shrunk.sqrt()).T
    return found
