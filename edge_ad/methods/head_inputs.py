"""What a head is fed, tile by tile, for methods that come back to the same tiles: epochs of training, a coreset.

Extractors are frozen and see every tile as it is, so features are extracted once and held, where they are wanted, while
they fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edge_ad.methods.tile_model import TileStream

MEMORY_BUDGET_BYTES = 2 * 1024**3  # a tile model's inputs above it are extracted anew each time
CUDA_SHARE = 0.5  # of a CUDA device's free memory, in its place


class HeadInputs:
    """Head inputs of the training tiles by number (see `TileStream.cut`), one tensor (n, ...) per input.

    Args:
        tiles: at least one.
        device: where the tensors are wanted, and held.
        budget_bytes: most memory to hold inputs in; `memory_budget` of the device where None.

    Raises:
        NonFiniteValuesError: NaN or infinity in the features; also from `__getitem__`.
    """

    def __init__(self, tiles: TileStream, device: torch.device, budget_bytes: int | None = None) -> None:
        self.tiles = tiles
        self.device = device
        self.held: tuple[Tensor, ...] | None = None
        budget = memory_budget(device) if budget_bytes is None else budget_bytes
        done = 0
        for batch in tiles:
            if self.held is None:
                if sum(part[0].nbytes for part in batch) * len(tiles) > budget:
                    return
                self.held = tuple(
                    torch.empty((len(tiles), *part.shape[1:]), dtype=part.dtype, device=device) for part in batch
                )
            for whole, part in zip(self.held, batch, strict=True):
                whole[done : done + len(part)] = part
            done += len(batch[0])

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.tiles)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The inputs of these tiles, in this order."""
        if self.held is not None:
            chosen = torch.as_tensor(indices).to(self.device, non_blocking=True)  # to wait is to drain the device
            return tuple(whole[chosen] for whole in self.held)
        return tuple(part.to(self.device) for part in self.tiles.head_inputs(indices))

    def batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of these tiles in batches of ``size``, the last one as large as is left."""
        for start in range(0, len(indices), size):
            yield self[indices[start : start + size]]


def memory_budget(device: torch.device) -> int:
    """Bytes that inputs may take on ``device``."""
    if device.type != "cuda":
        return MEMORY_BUDGET_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch for the next
    return int(CUDA_SHARE * (free + unused))
