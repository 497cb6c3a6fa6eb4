"""Commands write their defaults out, for --help is to come at once, without torch: they are the library's."""

from __future__ import annotations

import inspect
from typing import Any

import click
import pytest

from edge_ad.benchmarks.protocol import ITERATIONS, WARMUP
from edge_ad.cli import group
from edge_ad.evaluation.pixel_metrics import PRO_LIMIT
from edge_ad.evaluation.spro import SPRO_LIMIT
from edge_ad.evaluation.thresholds import DEFAULT_RULE
from edge_ad.training.distillation import Distillation
from edge_ad.training.trainer import HELD_OUT_FRACTION, train

TEACHER = Distillation()
TRAIN = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
DEFAULTS: dict[str, dict[str, Any]] = {
    "benchmark": {"warmup": WARMUP, "iterations": ITERATIONS},
    "distill": {
        "size": TEACHER.size,
        "backbone": TEACHER.backbone,
        "weights": TEACHER.weights,
        "steps": TEACHER.steps,
        "batch_size": TEACHER.batch_size,
        "learning_rate": TEACHER.learning_rate,
        "image_size": TEACHER.image_px,
        "seed": TEACHER.seed,
    },
    "evaluate": {"pro_limit": PRO_LIMIT, "spro_limit": SPRO_LIMIT},
    "threshold": {"rule": DEFAULT_RULE},
    "train": {
        "threshold": DEFAULT_RULE,
        "score_merge": TRAIN["score_merge"],
        "normalise": TRAIN["stage"],
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_librarys(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    found = {parameter.name: parameter.default for parameter in command.params}
    assert {option: found[option] for option in DEFAULTS[name]} == DEFAULTS[name]


def test_a_default_that_is_told_in_words() -> None:
    command = group.get_command(click.Context(group), "train")
    assert command is not None
    (option,) = (parameter for parameter in command.params if parameter.name == "held_out")
    assert isinstance(option, click.Option)
    assert f"[default: {HELD_OUT_FRACTION};" in str(option.help)
