"""Anomaly detection methods, one per file: each a tile model and how to fit it (PyTorch)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_ad.errors import InputError
from edge_ad.methods.parameters import check_parameters

if TYPE_CHECKING:
    from edge_ad.methods.tile_model import TileModel
    from edge_ad.tiling import Size

METHODS = {  # name: (module, class)
    "padim": ("edge_ad.methods.padim", "Padim"),
    "patchcore": ("edge_ad.methods.patchcore", "Patchcore"),
    "spade": ("edge_ad.methods.spade", "Spade"),
    "fastflow": ("edge_ad.methods.fastflow", "Fastflow"),
    "reverse_distillation": ("edge_ad.methods.reverse_distillation", "ReverseDistillation"),
    "stfpm": ("edge_ad.methods.stfpm", "Stfpm"),
    "reduced_student": ("edge_ad.methods.reduced_student", "ReducedStudent"),
    "ast": ("edge_ad.methods.ast", "Ast"),
    "uninformed_students": ("edge_ad.methods.uninformed_students", "UninformedStudents"),
    "cfa": ("edge_ad.methods.cfa", "Cfa"),
    "cutpaste": ("edge_ad.methods.cutpaste", "CutPaste"),
    "efficient_ad": ("edge_ad.methods.efficient_ad", "EfficientAd"),
    "efficient_ad_ast": ("edge_ad.methods.efficient_ad_ast", "EfficientAdAst"),
    "mixed_teacher": ("edge_ad.methods.mixed_teacher", "MixedTeacher"),
}


def method_class(method: str) -> type[TileModel]:
    """The class of ``method``. Raises `InputError` where there is none."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    module, name = METHODS[method]
    found: type[TileModel] = getattr(import_module(module), name)
    return found


def create_model(method: str, tile_size: Size, **config: Any) -> TileModel:
    """The tile model of ``method`` for tiles of ``tile_size``, unfitted.

    Raises:
        InputError: unknown method, or a parameter it does not have.
        BackboneError, WeightsNotFoundError, WrongWeightsError, NonFiniteWeightsError: see `Backbone`.
    """
    found = method_class(method)
    check_parameters(found, config)
    return found(tile_size, **config)
