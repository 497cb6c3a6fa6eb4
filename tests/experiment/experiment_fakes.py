"""Configurations and made-up outcomes, so that grids, stores and tables are tested without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_ad.bundle.manifest import Parity, ScoreMerge
from edge_ad.evaluation.image_metrics import Confusion, ImageMetrics
from edge_ad.evaluation.pixel_metrics import PixelMetrics
from edge_ad.experiment.config import Config, Variant, parse_config
from edge_ad.experiment.record import Benchmark, Identity, ImageScore, Outcome, Record, make_record

TINY = {"name": "tiny", "image_size": [64, 96], "tile_size": [32, 48]}


def some_config(**changes: Any) -> Config:
    table = {
        "setups": ["sm256"],
        "datasets": [{"path": "somewhere/metal", "categories": ["nut", "bolt"]}],
        "precisions": ["torch", "int8"],
        "seeds": [0, 1],
    }
    return parse_config({**table, **changes})


def outcome(auroc: float = 0.9, aupro: float | None = 0.8, **changes: Any) -> Outcome:
    image = ImageMetrics(auroc, 0.7, 0.6, 1.5, 1.25, 0.5, 0.4, 0.3, Confusion(1, 2, 3, 4), 5, 6)
    pixel = None if aupro is None else PixelMetrics(0.95, 0.2, 0.3, 0.9, aupro, 0.3, 8, 7, 1000, 10)
    made = Outcome(
        image=image,
        auroc_by_defect={"scratch": auroc},
        pixel=pixel,
        lost_masks=None if pixel is None else 0,
        metrics_size=None if pixel is None else (64, 96),
        aupro_by_defect=None if aupro is None else {"scratch": aupro},
        spro=None,
        images=(ImageScore("test/good/0.png", 0, "good", 0.25, None), ImageScore("test/x/1.png", 1, "x", 0.75, 0.02)),
        training_s=12.0,
        training_images=20,
        held_out_images=4,
        data_digest="ab" * 32,
        weights="none",
        parameters=3_000_000,
        size_bytes=None,
        graphs={},
        parity=(),
        executed="CPU f32",
        evaluation_ms=40.0,
        benchmark=None,
        versions={"numpy": "2.0.0"},
    )
    return replace(made, **changes)


def benchmark(**changes: Any) -> Benchmark:
    made = Benchmark("shortened", 5, 10, 8.5, 8.0, 1.05, 120.0, 16, 150 * 2**20, 90.0, "a CPU", ("too few runs",))
    return replace(made, **changes)


def bundle_outcome(auroc: float = 0.9, aupro: float | None = 0.8, **changes: Any) -> Outcome:
    parity = (Parity("f32", "CPU", 4, 0.1, 0.01, 0.1, 1.0, 0),)
    costs = {"size_bytes": 11_000_000, "graphs": {"int8": 1, "fp16": 9}, "parity": parity, "benchmark": benchmark()}
    return outcome(auroc, aupro, **{**costs, **changes})


def identity(**changes: Any) -> Identity:
    made = Identity("metal", "nut", "padim", "resnet18", "sm256", 0, Variant.TORCH, ScoreMerge.MEAN)
    return replace(made, **changes)


def record(result: Outcome | BaseException | None = None, **changes: Any) -> Record:
    """A line of `identity` with ``changes``."""
    return make_record(identity(**changes), {"threshold": "sigma:3"}, outcome() if result is None else result)
