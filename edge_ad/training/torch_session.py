"""A session over a torch module: the trained model behind the runtime's `Session`, so that one `Detector` runs both.

Evaluation of a run, thresholds and parity all use it: tiling, merging and seams are the same code on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_ad.methods.parts.full_float32 import full_float32
from edge_ad.runtime.session import Handle, TensorSpec


class TorchSession:
    """Runs ``module(*inputs)`` in float32 where it lies. See `edge_ad.runtime.session.Session`.

    Args:
        module: takes and returns tensors in the order of the names.
        inputs, outputs: what they are called; shapes are given per batch of ``batch_size``.
        device: of the module; outputs stay there until they are fetched.
    """

    precision = "f32"
    aside = False

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.module = module
        self.device = str(device).upper()
        self._device = device
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}

    @torch.inference_mode()
    @full_float32()
    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """See `Session.run`; handles are tensors."""
        values = [feeds[name] for name in self.inputs]
        tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
        results = self.module(*(tensor.to(self._device) for tensor in tensors))
        return dict(zip(self.outputs, results, strict=True))

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """See `Session.fetch`."""
        array: NDArray[Any] = handle.cpu().numpy()
        return array

    def close(self) -> None:
        """Nothing to free."""
