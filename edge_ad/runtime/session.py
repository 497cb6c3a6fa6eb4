"""A session: one compiled graph on one device. What every engine must offer, and nothing else.

Engines: `edge_ad.runtime.openvino_session`, `edge_ad.runtime.onnxruntime_session`; tests bring a fake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray


class ExecutionPrecision(StrEnum):
    """Precision the float parts of a graph are executed in. Integer (int8) parts run in int8 whatever this says."""

    AUTO = "auto"  # the device's default: bf16 on CPUs that gain by it, f16 on Intel GPUs, tf32 on CUDA, else f32
    F32 = "f32"
    TF32 = "tf32"  # products of float32 numbers rounded to 10 bits behind the point: NVIDIA GPUs
    BF16 = "bf16"
    F16 = "f16"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (batch first; every axis fixed) and numpy dtype name of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


# An output as its engine holds it: a numpy array, an openvino.Tensor, an onnxruntime.OrtValue. Opaque to callers.
Handle = Any


class Session(Protocol):
    """One compiled graph on one device.

    Attributes:
        device: what it runs on, as the engine reports it ("CPU", "GPU.0", "CUDA:1").
        precision: what the float parts run in, as the engine reports it ("f32", "tf32", "bf16", "f16").
        inputs, outputs: the graph's tensors by name, with the batch size compiled for.
        aside: its constants lie in a file and are read from there while it runs: it takes next to no memory.
    """

    device: str
    precision: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    aside: bool

    def run(self, feeds: Mapping[str, NDArray[Any] | Handle]) -> Mapping[str, Handle]:
        """Run once.

        Args:
            feeds: per input a C-contiguous numpy array of its exact shape and dtype, or a handle that a session of
                the same engine returned: such a tensor is passed on without a copy.

        Returns:
            A handle per output, valid until this session runs again; the same objects as before where they are the same
            memory, so that whoever is fed with them sees that nothing has changed.

        Raises:
            InferenceError: the engine failed.
        """

    def fetch(self, handle: Handle) -> NDArray[Any]:
        """The numpy array of one output: a view where the device shares memory with the host, else a copy."""

    def close(self) -> None:
        """Free the compiled graph. Idempotent."""
