"""CFA: features moved onto spheres around normal ones, and the distance to the nearest of their centres.

Source: Lee, Lee and Song, "CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization",
arXiv 2206.04325; official code sungwool/CFA_for_anomaly_localization. A descriptor, one 1 x 1 convolution that also
knows where it is, learns to bring every position near its `NEAREST` nearest centres and away from the `FARTHER` next
ones. Centres are the mean descriptions of every position before training, and stay. Loss: 1000 times the mean of
relu(d - r^2) over the nearest and of relu(r^2 - d - 0.1) over the next, d squared distances, r learnt. Map: the share
of the nearest centre among three in a softmin of distances, times its distance; upsampled, smoothed. Score: its
maximum.

As many centres as positions make the distances four times the work of a ResNet18: ``-p centres=512`` puts K-means
between, the paper's gamma_c.

Symbols: N batch, D channels of the descriptor, P = h' x w' positions, M centres.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.methods.gradient import GradientModel, Inputs, Schedule
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.local_averages import LocalAverages
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8, TileStream
from edge_ad.tiling import Size

NEAREST, FARTHER = 3, 3
MARGIN = 0.1
LOSS_SCALE = 1000.0
INITIAL_RADIUS = 1e-5
SMOOTHING_SIGMA_PX = 4.0
_ADAMW = functools.partial(torch.optim.AdamW, weight_decay=5e-4, amsgrad=True)


class CfaHead(nn.Module):
    """The descriptor and the distances to the centres."""

    coordinates: Tensor
    centres: Tensor

    def __init__(self, channels: int, dimensions: int, centres: int, positions: Size, tile_size: Size) -> None:
        super().__init__()
        self.positions = positions
        self.descriptor = nn.Conv2d(channels + 2, dimensions, 1)
        self.radius = nn.Parameter(torch.full((1,), INITIAL_RADIUS))
        rows, cols = (torch.linspace(-1, 1, count) for count in positions)
        coordinates = torch.stack(torch.meshgrid(rows, cols, indexing="ij"))[None]
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("centres", torch.zeros(centres, dimensions))
        self.upsample = UpsampleSmooth(positions, tile_size, SMOOTHING_SIGMA_PX)

    def describe(self, embedding: Tensor) -> Tensor:
        """(N, P, D) of ``embedding`` (N, C, h', w')."""
        placed = torch.cat([embedding, self.coordinates.expand(embedding.shape[0], -1, -1, -1)], dim=1)
        described: Tensor = self.descriptor(placed).flatten(2).transpose(1, 2)
        return described

    def nearest(self, described: Tensor) -> Tensor:
        """Squared distances (N, P, `NEAREST`) to the nearest centres, ascending, of ``described`` (N, P, D)."""
        return F.relu(self._squared(described).topk(NEAREST, dim=2, largest=False).values)

    def distances(self, described: Tensor) -> Tensor:
        """Squared distances (N, P, `NEAREST` + `FARTHER`) likewise, for training.

        A matrix of all distances is made for one tile at a time, and none is kept for the gradient: of 256 px that is
        64 MB a tile, three times over.
        """
        with torch.autocast(described.device.type, enabled=False):  # see `_squared`
            described = described.float()
            with torch.no_grad():
                count = NEAREST + FARTHER
                found = torch.stack([self._squared(tile).topk(count, largest=False).indices for tile in described])
            return torch.stack([(described - self.centres[each]).square().sum(2) for each in found.unbind(2)], dim=2)

    def _squared(self, described: Tensor) -> Tensor:
        """Squared distances (..., P, M) of ``described`` (..., P, D) to all centres, rounded, even below 0."""
        # The difference of large numbers: bfloat16 would leave nothing of it
        with torch.autocast(described.device.type, enabled=False):
            described = described.float()
            squares = (described * described).sum(-1, keepdim=True) + (self.centres * self.centres).sum(1)
            return squares - 2 * (described @ self.centres.T)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32."""
        distances = self.nearest(self.describe(embedding)).sqrt()
        share = (-distances).softmax(2)[:, :, 0]
        anomaly_map = self.upsample((share * distances[:, :, 0]).reshape(-1, 1, *self.positions))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class Cfa(GradientModel):
    """CFA on any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`.
        dimensions: channels of the descriptor; as many as the embedding has where None.
        centres: number of them, by K-means; one per position where None.
        training: see `GradientModel`.

    Raises:
        InputError: no dimensions; fewer centres than distances are taken to, or more than there are positions.
    """

    name: ClassVar[str] = "cfa"
    minimum_tiles: ClassVar[int] = 2
    head_int8: ClassVar[HeadInt8] = HeadInt8.KEEP  # nearly all of it is distances
    feature_names = ("embedding",)
    schedules = {  # noqa: RUF012 - read only
        "paper": Schedule(_ADAMW, learning_rate=1e-3, batch_size=32, steps=200),
        "original": Schedule(_ADAMW, learning_rate=1e-3, batch_size=4, epochs=30),
    }

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        dimensions: int | None = None,
        centres: int | None = None,
        **training: Any,
    ) -> None:
        network = Backbone(backbone, layers, weights)
        config = network.config | {"dimensions": dimensions, "centres": centres}
        super().__init__(tile_size, config, **training)
        self.positions = network.map_sizes(tile_size)[0]
        count = self.positions[0] * self.positions[1]
        self.channels = sum(spec.channels for spec in network.features)
        self.dimensions = self.channels if dimensions is None else dimensions
        self.centres = count if centres is None else centres
        if self.dimensions < 1:
            raise InputError(f"dimensions: expected 1 or more, but got {self.dimensions}")
        if not NEAREST + FARTHER <= self.centres <= count:
            raise InputError(
                f"centres: expected {NEAREST + FARTHER} to {count}, the positions of a tile, but got {self.centres}"
            )
        self.extractor = LocalAverages(network, self.positions).eval()
        self.weights_source = network.source

    def new_head(self) -> CfaHead:
        """See `GradientModel.new_head`."""
        return CfaHead(self.channels, self.dimensions, self.centres, self.positions, self.tile_size)

    def prepare(self, head: nn.Module, batches: Iterable[Inputs]) -> None:
        """Centres: mean descriptions per position, or K-means of them."""
        assert isinstance(head, CfaHead)
        total, count = torch.zeros((), device=self.device), 0
        for (embedding,) in batches:
            total = total + head.describe(embedding).sum(0)
            count += len(embedding)
        means = total / count
        if self.centres < len(means):
            means = k_means(means, self.centres)
        head.centres.copy_(means)

    def adapt(self, head: nn.Module, tiles: TileStream, seed: int) -> nn.Module:
        """As it is: centres are those of the descriptor before it was trained."""
        return head

    def loss(self, head: nn.Module, inputs: Inputs) -> Tensor:
        """Attraction to the nearest centres and repulsion from the next."""
        assert isinstance(head, CfaHead)
        distances = head.distances(head.describe(inputs[0]))
        sphere = head.radius.square()
        attraction = F.relu(distances[:, :, :NEAREST] - sphere).mean()
        repulsion = F.relu(sphere - distances[:, :, NEAREST:] - MARGIN).mean()
        return LOSS_SCALE * (attraction + repulsion)


def k_means(points: Tensor, count: int) -> Tensor:
    """``count`` centres (count, D) of ``points`` (n, D), seeded by torch's global generator."""
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31 - 1, ()))
    fitted = KMeans(count, n_init=1, random_state=seed).fit(points.cpu().numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(points)
