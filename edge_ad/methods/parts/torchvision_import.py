"""Import torchvision beside a CPU build of torch.

timm imports torchvision. Where torchvision's compiled operators were built for another torch (a CUDA wheel beside a CPU
torch is the usual case), its import dies with ``operator torchvision::nms does not exist``, although nothing here calls
such an operator. Declaring the two operators it looks up, without an implementation, lets the import through.
"""

from __future__ import annotations

import sys

import torch

_declared: list[torch.library.Library] = []  # an operator lives as long as its Library


def import_torchvision() -> None:
    """Make ``import torchvision`` succeed, declaring its missing operators where it must be."""
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import torchvision  # noqa: F401
