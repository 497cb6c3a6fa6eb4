"""Float32 with all its digits: GPUs multiply it in TF32, of ten bits, where torch lets them.

Distances are small differences of large numbers, and what heads are fitted on must be what they are fed. Training steps
are left as they are: they bear the rounding, and it makes them several times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 inside, in convolutions and products; outside as before. Of no effect on a CPU.

    The switches are torch's global ones: other threads see them too.
    """
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
