"""Visual anomaly detection on the edge: one small model per tile, quantised, streamed, measured.

Importing this package loads numpy and nothing heavier; OpenCV and the inference engine come with the first `load`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_ad import errors
from edge_ad.tiling import TileGrid

if TYPE_CHECKING:
    from edge_ad.runtime.capture import Frame, frames_from
    from edge_ad.runtime.detector import Detector
    from edge_ad.runtime.faults import FaultPolicy
    from edge_ad.runtime.loading import load
    from edge_ad.runtime.result import Result, Verdict
    from edge_ad.runtime.stream import Stream

__version__ = "0.1.0"
__all__ = [
    "Detector",
    "FaultPolicy",
    "Frame",
    "Result",
    "Stream",
    "TileGrid",
    "Verdict",
    "__version__",
    "errors",
    "frames_from",
    "load",
]

_LAZY = {
    "load": "edge_ad.runtime.loading",
    "Detector": "edge_ad.runtime.detector",
    "FaultPolicy": "edge_ad.runtime.faults",
    "Frame": "edge_ad.runtime.capture",
    "frames_from": "edge_ad.runtime.capture",
    "Result": "edge_ad.runtime.result",
    "Stream": "edge_ad.runtime.stream",
    "Verdict": "edge_ad.runtime.result",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
