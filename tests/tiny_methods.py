"""Every method, small enough for a test: ResNet18 with random weights, tiles of 64x48 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_run import scene

from edge_ad.methods import create_model, method_class
from edge_ad.methods.parameters import parameters
from edge_ad.methods.parts import pdn
from edge_ad.methods.tile_model import TileModel
from edge_ad.runtime.detector import Detector
from edge_ad.setups import Setup

TILE_SIZE = (64, 48)

# What makes a method small enough for a test; everything else is its default.
PARAMETERS: dict[str, dict[str, Any]] = {
    "padim": {"dimensions": 9},
    "patchcore": {"coreset_ratio": 0.25},
    "spade": {"gallery": 8, "neighbours": 3},
    "fastflow": {"steps": 24, "batch_size": 4},
    "reverse_distillation": {"steps": 48, "batch_size": 4},
    "stfpm": {"steps": 24, "batch_size": 4},
    "reduced_student": {"layers": ("maxpool", "layer1", "layer2"), "steps": 160, "batch_size": 4},
    "ast": {"teacher_width": 16, "student_width": 32, "steps": 60, "batch_size": 4, "learning_rate": 2e-3},
    "cfa": {"dimensions": 24, "centres": 48, "steps": 24, "batch_size": 4},
    "cutpaste": {"steps": 60, "batch_size": 4},
    "efficient_ad": {"size": "tiny", "steps": 100, "batch_size": 2, "learning_rate": 1e-3},
    "efficient_ad_ast": {
        "teacher_width": 16,
        "student_width": 32,
        "steps": 60,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "scaled_maps": True,
    },
    "uninformed_students": {"width": 8, "steps": 48, "batch_size": 2, "learning_rate": 4e-3},
    "mixed_teacher": {
        "second_backbone": "test_efficientnet",
        "second_layers": ("blocks.2", "blocks.3"),
        "steps": 96,
        "batch_size": 4,
    },
}

pdn.SIZES["tiny"] = (pdn.Layer(4, 16, pooled=True), pdn.Layer(4, 32, pooled=True), pdn.Layer(3, 32), pdn.Layer(4, 24))


def tiny(method: str, **changes: Any) -> TileModel:
    """``changes`` to its parameters."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        known = parameters(method_class(method))
        common = {key: value for key, value in {"backbone": "resnet18", "weights": "none"}.items() if key in known}
        return create_model(method, TILE_SIZE, **common, **PARAMETERS[method] | changes)


def planted(setup: Setup, count: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """New images of the scene, and the same with a scratch."""
    normal = scene(count, setup.image_size, seed=9)
    defective = normal.copy()
    defective[:, 20:32, 14:30] = np.random.default_rng(1).integers(0, 2, (12, 16, 1)) * 255
    return normal, defective


def scores_of(detector: Detector, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.array([detector.raw(image[None]).scores[0] for image in images])
