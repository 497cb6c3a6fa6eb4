"""PaDiM: a Gaussian per position of a frozen network's feature map, and the Mahalanobis distance to it.

Source: Defard et al., "PaDiM: a Patch Distribution Modeling Framework", arXiv 2011.08785, section III. At position p,
x_p are d channels drawn at random, once, from the concatenated maps of three layers; S_p is their covariance over the
training tiles plus `REGULARISATION` I, and the anomaly map is sqrt((x - m)^T S^-1 (x - m)), upsampled and smoothed.

Of S the 48 leading eigenvectors are kept, and one eigenvalue for all others (`PadimHead`), where the paper inverts it
whole: the same up to 49 training tiles, and close to it with more. ``-p rank=`` at d is the paper's for any number.

Symbols: N tiles, P = h' x w' positions, d channels kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_ad.errors import InputError
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE, Backbone
from edge_ad.methods.parts.eight_bits import LARGEST, STEP, rounded, whole_rows
from edge_ad.methods.parts.smoothing import UpsampleSmooth
from edge_ad.methods.tile_model import HeadInt8, TileModel, TileStream
from edge_ad.progress import Progress, no_progress
from edge_ad.tiling import FeatureAxes, Size

DIMENSIONS = 100
REGULARISATION = 0.01
# Of 67, 50 and 84 directions on three sets of real images, 48 moved image AUROC and AUPRO by 0.04 points at most, 32 by
# 0.3. Half of the head's bytes and products.
RANK = 48
SMOOTHING_SIGMA_PX = 4.0
SMALLEST_EXTENT = 1e-6  # of features that are all at their mean
_POSITIONS_PER_SOLVE = 1024  # bounds the temporary memory of the factorisation to 80 MB per 100 channels


class PadimExtractor(nn.Module):
    """uint8 tiles to embeddings: the chosen channels of every tapped layer at the resolution of the first.

    Channels are chosen before upsampling, and the choice is the same for all locations of an ensemble: the embedding is
    part of the shared graph. They are chosen by a convolution of ones and zeros, and those of a position lie side by
    side: engines convolve in that order, and an index or another order makes them move every tensor once more, which
    was a third of an int8 extractor's time.
    """

    def __init__(self, backbone: Backbone, channels: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        starts = torch.tensor([0, *(spec.channels for spec in backbone.features)]).cumsum(0)
        for index, spec in enumerate(backbone.features):
            inside = (channels >= starts[index]) & (channels < starts[index + 1])
            chosen = F.one_hot(channels[inside] - starts[index], spec.channels)
            self.register_buffer(f"choice_{index}", chosen[..., None, None].float())
        self.layers = [index for index, choice in enumerate(self.choices) if len(choice)]

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Embedding (N, h', w', d) float32 of ``image`` uint8 (N, h, w, 3)."""
        maps = self.backbone(image)
        size = maps[0].shape[-2:]
        chosen = {index: F.conv2d(maps[index], self.choices[index]) for index in self.layers}
        # Nearest: deeper maps are replicated, as the fold/unfold of the reference code does
        replicated = [F.interpolate(part, size=size) if index else part for index, part in chosen.items()]
        return (torch.cat(replicated, dim=1).permute(0, 2, 3, 1),)

    @property
    def choices(self) -> list[Tensor]:
        """Of every layer (k, C, 1, 1): ones where its k channels are; k may be 0."""
        return [getattr(self, f"choice_{index}") for index in range(len(self.backbone.features))]


class PadimHead(nn.Module):
    """Mahalanobis distance per position, from the leading eigenvectors of its covariance.

    With eigenpairs (l_k, v_k) of S, and l_0 in place of every eigenvalue but the r largest,

        d^2 = (x - m)^T S^-1 (x - m) = (|x - m|^2 - |B (x - m)|^2) / l_0,   rows of B: sqrt(1 - l_0 / l_k) v_k

    N tiles span at most N - 1 directions and every other eigenvalue is the regularisation itself, so r = min(N, d) - 1
    rows are exact: one batched MatMul, half the bytes of S^-1 for 50 tiles, and no inverse. With fewer rows l_0 is the
    mean of the eigenvalues left out, the most likely one (Tipping and Bishop, "Probabilistic Principal Component
    Analysis", 1999, eq. 8). Rows of B are at most 1 long and 1 / l_0 comes last: nothing overflows in half precision.
    """

    mean: Tensor
    gain: Tensor
    directions: Tensor

    def __init__(self, positions: Size, dimensions: int, rank: int, tile_size: Size) -> None:
        super().__init__()
        self.positions = positions
        count = positions[0] * positions[1]
        self.register_buffer("mean", torch.zeros(count, dimensions))
        self.register_buffer("gain", torch.zeros(count))
        self.register_buffer("directions", torch.zeros(count, rank, dimensions))
        self.upsample = UpsampleSmooth(positions, tile_size, SMOOTHING_SIGMA_PX)

    def deviations(self) -> Tensor:
        """Standard deviations (P, d) of the features, regularised: the roots of the diagonal of S."""
        shares = self.directions.float().square()  # (1 - l_0 / l_k) v_k^2
        above = 1 - shares.sum(2, keepdim=True)  # l_0 / l_k
        return (1 + (shares / above).sum(1)).sqrt() / self.gain[:, None]

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(anomaly_map (N, 1, h, w), pred_score (N,)) float32 of ``embedding`` (N, h', w', d)."""
        centred = embedding.reshape(-1, *self.mean.shape) - self.mean  # (N, P, d)
        projected = self.directions.float() @ centred.permute(1, 2, 0)  # (P, r, N)
        left = (centred * centred).sum(2) - (projected * projected).sum(1).T  # (N, P)
        distance = F.relu(left).sqrt() * self.gain
        anomaly_map = self.upsample(distance.reshape(-1, 1, *self.positions))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class PadimInt8Head(nn.Module):
    """`PadimHead` with its product in int8: half the bytes of half precision, a little faster.

    Features are measured in their own standard deviations, and rounded to 127 steps of the largest at their position:
    nothing saturates, however strange it is. The distance is a small difference of two large numbers: both are taken of
    the same rounded features, so that it is the exact distance of a point close by.
    """

    mean: Tensor
    per_unit: Tensor
    unit: Tensor
    gain: Tensor
    directions: Tensor
    lengths: Tensor

    def __init__(self, head: PadimHead) -> None:
        super().__init__()
        self.positions = head.positions
        unit = head.deviations()
        directions, lengths = whole_rows(head.directions.float() * unit[:, None, :])
        self.register_buffer("mean", head.mean)
        self.register_buffer("per_unit", 1 / unit)
        self.register_buffer("unit", unit)
        self.register_buffer("gain", head.gain)
        self.register_buffer("directions", directions)
        self.register_buffer("lengths", lengths)
        self.upsample = head.upsample

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """As `PadimHead.forward`."""
        centred = (embedding.reshape(-1, *self.mean.shape) - self.mean) * self.per_unit  # (N, P, d)
        extent = centred.abs().amax(2, keepdim=True).clamp(min=SMALLEST_EXTENT) / (LARGEST * STEP)
        whole = rounded(centred / extent)
        projected = (self.directions @ whole.permute(1, 2, 0)) * self.lengths  # (P, r, N)
        distance = whole * self.unit
        left = (distance * distance).sum(2) - (projected * projected).sum(1).T  # (N, P)
        distances = F.relu(left).sqrt() * extent.squeeze(2) * self.gain
        anomaly_map = self.upsample(distances.reshape(-1, 1, *self.positions))
        return anomaly_map, anomaly_map.amax((1, 2, 3))


class Padim(TileModel):
    """PaDiM on any timm backbone.

    Args:
        tile_size: (h, w) pixels.
        backbone, layers, weights: see `Backbone`.
        dimensions: channels kept, d; all of them where there are fewer.
        rank: leading eigenvectors kept per position, r; fewer where the tiles span fewer.
        seed: of the channel choice, which is part of the model.

    Attributes:
        channels: int64 (d,), those kept, numbered through the tapped layers.
    """

    name: ClassVar[str] = "padim"
    minimum_tiles: ClassVar[int] = 2
    head_int8: ClassVar[HeadInt8] = HeadInt8.REFIT
    head_keeps_f32: ClassVar[bool] = False  # bf16 moves image AUROC and AUPRO by less than 0.1 points, see RANK
    feature_names = ("embedding",)
    feature_axes = FeatureAxes.NHWC

    def __init__(
        self,
        tile_size: Size,
        *,
        backbone: str = DEFAULT_BACKBONE,
        layers: tuple[str, ...] = (),
        weights: str = "auto",
        dimensions: int = DIMENSIONS,
        rank: int = RANK,
        seed: int = 0,
    ) -> None:
        network = Backbone(backbone, layers, weights)
        config: dict[str, Any] = {
            **network.config,
            "dimensions": dimensions,
            "rank": rank,
            "seed": seed,
        }
        if dimensions < 2 or rank < 1:
            raise InputError(f"padim: expected dimensions >= 2 and rank >= 1, but got {dimensions} and {rank}")
        super().__init__(tile_size, config)
        self.rank = rank
        total = sum(spec.channels for spec in network.features)
        self.dimensions = min(dimensions, total)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        self.weights_source = network.source
        self.channels = order[: self.dimensions].sort().values
        self.extractor = PadimExtractor(network, self.channels).eval()
        self.positions = network.map_sizes(tile_size)[0]

    def head_from_state(self, state: Mapping[str, Tensor]) -> PadimHead:
        """See `TileModel.head_from_state`."""
        head = PadimHead(self.positions, self.dimensions, state["directions"].shape[1], self.tile_size)
        head.load_state_dict(state)
        return head.eval()

    @torch.no_grad()
    def in_int8(self, head: nn.Module) -> PadimInt8Head:
        """See `TileModel.in_int8`."""
        assert isinstance(head, PadimHead)
        return PadimInt8Head(head).eval()

    @torch.no_grad()
    def fit(self, tiles: TileStream, seed: int, progress: Progress = no_progress) -> PadimHead:
        """One pass over the tiles: sums of x and x x^T in float64, P d (d + 1) numbers for any N; nothing random."""
        self.check_counts(len(tiles.images), len(tiles))
        count, d = self.positions[0] * self.positions[1], self.dimensions
        total = torch.zeros(count, d, dtype=torch.float64, device=self.device)
        products = torch.zeros(count, d, d, dtype=torch.float64, device=self.device)
        for (embedding,) in tiles:
            x = embedding.flatten(1, 2).permute(1, 2, 0).double()  # (P, d, n)
            total += x.sum(2)
            products.baddbmm_(x, x.transpose(1, 2))
        mean = total / len(tiles)
        head = PadimHead(self.positions, d, min(len(tiles) - 1, d - 1, self.rank), self.tile_size).eval()
        head.mean.copy_(mean)
        for start in range(0, count, _POSITIONS_PER_SOLVE):
            part = slice(start, start + _POSITIONS_PER_SOLVE)
            scatter = products[part].baddbmm_(mean[part, :, None], mean[part, None, :], alpha=-len(tiles))
            head.gain[part], head.directions[part] = deflate(scatter / (len(tiles) - 1), head.directions.shape[1])
        return head


def deflate(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """1 / sqrt(l_0) (P,) and B (P, rank, d) of `PadimHead` for ``covariance`` (P, d, d) before regularisation.

    Exact where the covariance has at most ``rank`` eigenvalues above its smallest.
    """
    # Regularised before: MKL's float32 solver gave up on a real covariance of 52 dead channels among 100.
    regularised = covariance + REGULARISATION * torch.eye(
        covariance.shape[-1], dtype=covariance.dtype, device=covariance.device
    )
    try:
        values, vectors = eigh(regularised.float())  # ascending
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # torch's stubs forget it
        values, vectors = (part.float() for part in eigh(regularised.double()))
    values = values.clamp(min=REGULARISATION)
    rest = values[:, :-rank].mean(1)
    scale = (1 - rest[:, None] / values[:, -rank:]).clamp(min=0).sqrt()
    return rest.rsqrt(), scale[:, :, None] * vectors[:, :, -rank:].transpose(1, 2)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (P, d), ascending, and eigenvectors (P, d, d) of symmetric ``matrices`` (P, d, d), on their device.

    On the CPU's cores. torch's own takes the matrices of a stack one after the other there, and longer still on a GPU:
    4096 of 100 x 100 took an H200 ten seconds.
    """
    workers = torch.get_num_threads()
    with ThreadPoolExecutor(workers) as pool:
        solved = list(pool.map(torch.linalg.eigh, matrices.cpu().chunk(workers)))
    values, vectors = (torch.cat(parts) for parts in zip(*solved, strict=True))
    return values.to(matrices.device), vectors.to(matrices.device)
