"""PatchCore: the distance of every patch of a tile to the nearest patch remembered from normal tiles.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265. Where the paper and its
official code differ this follows the paper, and in how neighbourhoods are gathered anomalib: the maps of two layers are
averaged over 3x3 positions (zeros outside count), the deeper one is upsampled bilinearly, and they are concatenated.

Symbols: N tiles, P = h' x w' patches, D channels, M vectors in the bank, b neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import CoresetSizeError
from edge_ad.methods.head_inputs import HeadInputs
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.coreset import farthest_points, random_projection
from edge_ad.methods.parts.eight_bits import STEP, rounded, whole_rows
from edge_ad.methods.parts.local_averages import LocalAverages
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8, TileModel, TileStream
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import FeatureAxes, Size

REDUCTIONS = (8, 16)  # ResNet's layer2 and layer3
CORESET_RATIO = 0.1
NEIGHBOURS = 9  # b of eq. 7
SMOOTHING_SIGMA_PX = 4.0
_ROWS_PER_PRODUCT = 1024  # bounds the temporary memory of distances within the bank


class PatchcoreHead(nn.Module):
    """Distances to a memory bank, and the re-weighted score of eq. 7.

    All vectors are taken relative to the bank's mean: distances stay what they are, and |x|^2 - 2 x y + |y|^2 keeps the
    digits that a common offset would cost it. A row of the bank is a vector y, then -|y|^2 / 2 in two numbers, so that
    one product with (x, 1, 1) gives x y - |y|^2 / 2. One number in half precision would be off by
    up to 5e-4 of |y|^2, which vectors that are far from the mean but near each other do not bear.
    """

    centre: Tensor
    bank: Tensor
    neighbours: Tensor
    chosen: Tensor

    def __init__(self, positions: Size, dimensions: int, size: int, neighbours: int, tile_size: Size) -> None:
        super().__init__()
        self.positions = positions
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("bank", torch.zeros(size, dimensions + 2))
        self.register_buffer("neighbours", torch.zeros(size, neighbours, dtype=torch.int64))
        self.register_buffer("chosen", torch.zeros(size, dtype=torch.int64))  # which training patches; not exported
        self.upsample = UpsampleSmooth(positions, tile_size, SMOOTHING_SIGMA_PX)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32 of ``embedding`` (N, h', w', D)."""
        patches = embedding.flatten(1, 2) - self.centre  # (N, P, D)
        squared = (patches * patches).sum(2) - 2 * self._closeness(patches).amax(2)
        distance = F.relu(squared).sqrt()  # (N, P)
        anomaly_map = self.upsample(distance.reshape(-1, 1, *self.positions))
        farthest = distance.argmax(1).reshape(-1, 1, 1).expand(-1, 1, patches.shape[2])
        return anomaly_map, self.score(patches.gather(1, farthest))

    def score(self, patch: Tensor) -> Tensor:
        """Eq. 7 (N,) of centred patches (N, 1, D).

        The distance to the nearest bank vector m*, times one minus its share in the softmax over the b vectors nearest
        to m*, itself among them. Distances are exact differences here.
        """
        nearest = self._closeness(patch).argmax(2)[:, 0]
        around = self.bank[self.neighbours[nearest]][:, :, :-2]  # (N, b, D), m* first
        return reweighted(((patch - around) * (patch - around)).sum(2).sqrt())

    def _closeness(self, patches: Tensor) -> Tensor:
        """x y - |y|^2 / 2 (N, P, M): greatest for the vector that is nearest."""
        return F.pad(patches, (0, 2), value=1.0) @ self.bank.T


class PatchcoreInt8Head(nn.Module):
    """`PatchcoreHead` with its product in int8.

    Both sides are rounded once, a patch x to r and a vector of the bank to y, and distances are those between r and y.
    Products of whole numbers lose no digit, so that a small difference of large squares is off by no more than rounding
    moved its ends. A step of r is 1/255 of the bank's range, which is lopsided around the mean; of y, 1/127 of its
    largest number. What of a patch lies beyond the range is not lost: d^2 = |r - y|^2 + |x - r|^2, since it points away
    from the bank. Bundles store |y|^2 / 2 in half precision, up to 2.5e-4 of it off: less than the rounding of y costs.
    """

    centre: Tensor
    bank: Tensor
    lengths: Tensor
    half_squares: Tensor
    neighbours: Tensor

    def __init__(self, head: PatchcoreHead) -> None:
        super().__init__()
        self.positions = head.positions
        vectors = head.bank[:, :-2]
        lowest, highest = (number.item() for number in vectors.aminmax())
        self.step = (highest - lowest) / 255 or STEP
        self.lowest = round(lowest / self.step)
        bank, lengths = whole_rows(vectors)
        lengths = lengths.half().float()  # as a bundle stores them: the squares are of the vectors it multiplies
        self.register_buffer("centre", head.centre)
        self.register_buffer("bank", bank)
        self.register_buffer("lengths", lengths[:, 0])
        self.register_buffer("half_squares", (bank * lengths).square().sum(1) / 2)
        self.register_buffer("neighbours", head.neighbours)
        self.upsample = head.upsample

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """As `PatchcoreHead.forward`."""
        patches = embedding.flatten(1, 2) - self.centre  # (N, P, D)
        near = rounded(patches, self.step, self.lowest)
        beyond = patches - near
        squares = (near * near + beyond * beyond).sum(2)  # (N, P)
        closeness = (near @ self.bank.T) * self.lengths - self.half_squares  # (N, P, M), greatest for the nearest
        distance = F.relu(squares - 2 * closeness.amax(2)).sqrt()
        anomaly_map = self.upsample(distance.reshape(-1, 1, *self.positions))
        farthest = distance.argmax(1, keepdim=True)  # (N, 1)
        towards = closeness.gather(1, farthest[:, :, None].expand(-1, -1, closeness.shape[2]))[:, 0]  # (N, M)
        around = self.neighbours[towards.argmax(1)]  # (N, b)
        squared = squares.gather(1, farthest) - 2 * towards.gather(1, around)
        return anomaly_map, reweighted(F.relu(squared).sqrt())


def reweighted(distances: Tensor) -> Tensor:
    """Eq. 7 (N,) of the distances (N, b) to m* and to what lies around it in the bank, m* first."""
    return (1 - distances.softmax(1)[:, 0]) * distances[:, 0]


class Patchcore(TileModel):
    """PatchCore on any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`; the layers of stride 8 and 16 where none are named.
        coreset_ratio: part of the training patches kept in the bank, at most 1.
        bank_size: vectors in the bank, in place of the ratio: the time and memory of a tile are proportional to it.

    Raises:
        CoresetSizeError: the ratio is not in (0, 1], or the bank is to hold fewer than two vectors.
    """

    name: ClassVar[str] = "patchcore"
    minimum_tiles: ClassVar[int] = 1
    head_int8: ClassVar[HeadInt8] = HeadInt8.REFIT
    feature_names = ("embedding",)
    feature_axes = FeatureAxes.NHWC

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        coreset_ratio: float = CORESET_RATIO,
        bank_size: int | None = None,
    ) -> None:
        if not 0 < coreset_ratio <= 1:
            raise CoresetSizeError(f"coreset_ratio: expected more than 0 and at most 1, but got {coreset_ratio}")
        if bank_size is not None and bank_size < 2:
            raise CoresetSizeError(f"bank_size: expected at least 2 vectors, but got {bank_size}")
        network = Backbone(backbone, layers, weights, REDUCTIONS)
        config: dict[str, Any] = {
            **network.config,
            "coreset_ratio": coreset_ratio,
            "bank_size": bank_size,
        }
        super().__init__(tile_size, config)
        self.coreset_ratio, self.bank_size = coreset_ratio, bank_size
        self.positions = network.map_sizes(tile_size)[0]
        self.dimensions = sum(spec.channels for spec in network.features)
        self.weights_source = network.source
        self.extractor = LocalAverages(network, self.positions, self.feature_axes).eval()

    def head_from_state(self, state: Mapping[str, Tensor]) -> PatchcoreHead:
        """See `TileModel.head_from_state`."""
        size, neighbours = state["neighbours"].shape
        head = PatchcoreHead(self.positions, self.dimensions, size, neighbours, self.tile_size)
        head.load_state_dict(state)
        return head.eval()

    @torch.no_grad()
    def in_int8(self, head: nn.Module) -> PatchcoreInt8Head:
        """See `TileModel.in_int8`."""
        assert isinstance(head, PatchcoreHead)
        return PatchcoreInt8Head(head).eval()

    def check_counts(self, images: int, tiles: int) -> None:
        """See `TileModel.check_counts`.

        Raises:
            CoresetSizeError: the bank is to hold more vectors than there are patches.
        """
        super().check_counts(images, tiles)
        patches = tiles * self.positions[0] * self.positions[1]
        if (size := self._size(patches)) > patches:
            raise CoresetSizeError(
                f"a bank of {size} vectors is larger than the {patches} patches of {tiles} training tiles; "
                "choose a smaller -p bank_size=..., or give more images"
            )

    @torch.no_grad()
    def fit(self, tiles: TileStream, seed: int, progress: Progress = no_progress) -> PatchcoreHead:
        """Two passes over the tiles: projections of all patches to choose from, then the patches that were chosen."""
        self.check_counts(len(tiles.images), len(tiles))
        inputs = HeadInputs(tiles, self.device)
        generator = torch.Generator().manual_seed(seed)
        projection = random_projection(self.dimensions, generator).to(self.device)
        projected = torch.cat(
            [_patches(embedding) @ projection for (embedding,) in inputs.batches(range(len(inputs)), tiles.batch_size)]
        )
        first = int(torch.randint(len(projected), (1,), generator=generator))
        chosen = farthest_points(projected, self._size(len(projected)), first, progress)
        return self._remember(inputs.batches(range(len(inputs)), tiles.batch_size), chosen)

    @torch.no_grad()
    def refit(self, head: nn.Module, tiles: TileStream, seed: int, progress: Progress = no_progress) -> PatchcoreHead:
        """The same patches with their new features: nothing is chosen anew."""
        assert isinstance(head, PatchcoreHead)
        return self._remember(tiles, head.chosen)

    def _remember(self, batches: Iterable[tuple[Tensor, ...]], chosen: Tensor) -> PatchcoreHead:
        """A head with the patches of these numbers, counted over ``batches``."""
        bank, start = torch.empty(len(chosen), self.dimensions, device=self.device), 0
        chosen = chosen.to(self.device)
        for (embedding,) in batches:
            patches = _patches(embedding.to(self.device))
            inside = (chosen >= start) & (chosen < start + len(patches))
            bank[inside] = patches[chosen[inside] - start]
            start += len(patches)
        return self.head_from_state(bank_state(bank) | {"chosen": chosen})

    def _size(self, patches: int) -> int:
        return self.bank_size or max(2, int(self.coreset_ratio * patches))


def bank_state(vectors: Tensor) -> dict[str, Tensor]:
    """The ``state_dict()`` of a `PatchcoreHead` that remembers ``vectors`` (M, D)."""
    centre = vectors.mean(0)
    centred = vectors - centre
    half = (centred * centred).sum(1, keepdim=True) / -2
    coarse = half.half().float()
    return {
        "chosen": torch.arange(len(vectors)),
        "centre": centre,
        "bank": torch.cat([centred, coarse, half - coarse], dim=1),
        "neighbours": nearest_in_bank(centred, min(NEIGHBOURS, len(vectors))),
    }


def nearest_in_bank(bank: Tensor, count: int) -> Tensor:
    """Indices int64 (M, count) of the vectors nearest to each of ``bank`` (M, D), nearest first, itself at the head."""
    squares = (bank * bank).sum(1)
    found = []
    for start in range(0, len(bank), _ROWS_PER_PRODUCT):
        rows = bank[start : start + _ROWS_PER_PRODUCT]
        beyond = squares - 2 * rows @ bank.T
        own = torch.arange(len(rows), device=bank.device)
        beyond[own, start + own] = -torch.inf  # rounding must not put a twin before it
        found.append(beyond.topk(count, largest=False).indices)
    return torch.cat(found)


def _patches(embedding: Tensor) -> Tensor:
    """(N P, D) of (N, h', w', D)."""
    return embedding.flatten(0, 2)
