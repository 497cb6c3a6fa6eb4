"""What an experiment runs over, as written in a TOML file.

    methods = ["padim"]
    setups = ["sm256", "ens9", {name = "wide", image_size = [512, 1024], tile_size = [256, 512], sharing = "location"}]
    precisions = ["torch", "fp32", "int8"]    # torch: the trained model; the others: an exported bundle
    seeds = [0, 1, 2]

    [[datasets]]
    path = "${EDGE_AD_DATA}/kolektorsdd"      # relative to the working directory; variables of the environment

    [[backbones]]
    name = "tf_efficientnet_lite0"

    [parameters.padim]                        # keyword arguments of the method
    dimensions = 100

    [benchmark]                               # none without it
    warmup = 100
    iterations = 100

Every other key has a default: see the dataclasses, whose fields are the keys. Unknown keys are refused.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_ad.benchmarks.protocol import ITERATIONS, WARMUP
from edge_ad.bundle.manifest import Format, Precision, ScoreMerge
from edge_ad.data.layouts import LAYOUTS
from edge_ad.errors import ConfigError, InputError
from edge_ad.evaluation.pixel_metrics import PRO_LIMIT
from edge_ad.evaluation.spro import SPRO_LIMIT
from edge_ad.evaluation.thresholds import DEFAULT_RULE, Statistic, ThresholdRule
from edge_ad.methods import METHODS
from edge_ad.methods.parts.backbone import DEFAULT_BACKBONE
from edge_ad.records import from_plain
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.setups import SETUPS, ExtractorScope, Setup, Sharing
from edge_ad.tiling import Size
from edge_ad.training.trainer import HELD_OUT_FRACTION

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SPECIAL_WEIGHTS = ("auto", "none")


class Variant(StrEnum):
    """What is measured: the trained model, or a bundle exported from it in a precision."""

    TORCH = "torch"  # float32, where it was trained
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def precision(self) -> Precision | None:
        """Of the bundle; None for the trained model."""
        return None if self is Variant.TORCH else Precision(self)


@dataclass(frozen=True)
class DatasetEntry:
    """A data set; ``name`` is the last part of its path where empty, ``categories`` are all of them where empty."""

    path: str
    name: str = ""
    layout: str = "mvtec"
    categories: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The path, its variables replaced. Raises `ConfigError` where one is not set."""
        return Path(expand(self.path))

    @property
    def label(self) -> str:
        """What it is called in results."""
        return self.name or self.root.name


@dataclass(frozen=True)
class BackboneEntry:
    """A timm network and its weights: ``auto``, ``none`` or a file (variables are replaced)."""

    name: str = DEFAULT_BACKBONE
    weights: str = "auto"
    layers: tuple[str, ...] = ()

    @property
    def weights_argument(self) -> str:
        """As a method takes it. Raises `ConfigError` where a variable is not set."""
        return self.weights if self.weights in _SPECIAL_WEIGHTS else expand(self.weights)


@dataclass(frozen=True)
class SetupEntry:
    """A geometry of one's own, sizes (height, width); ``stride`` is the tile size where it is not given."""

    name: str
    image_size: Size
    tile_size: Size
    stride: Size | None = None
    sharing: Sharing = Sharing.LOCATION
    global_model: bool = False
    extractor_scope: ExtractorScope = ExtractorScope.TILE

    @property
    def setup(self) -> Setup:
        """As the trainer takes it."""
        stride = self.stride or self.tile_size
        setup = Setup(
            self.name,
            self.image_size,
            self.tile_size,
            stride,
            self.sharing,
            self.global_model,
            self.extractor_scope,
        )
        return setup if SETUPS.get(self.name) == setup else replace(setup, name="custom")


@dataclass(frozen=True)
class BenchmarkEntry:
    """Counts of the timing protocol (see `edge_ad.benchmarks.protocol`); ``batch`` 0 measures no throughput."""

    warmup: int = WARMUP
    iterations: int = ITERATIONS
    batch: int | None = None
    throughput_iterations: int | None = None


@dataclass(frozen=True)
class Config:
    """A whole experiment. See the module docstring."""

    datasets: tuple[DatasetEntry, ...]
    setups: tuple[SetupEntry, ...]
    methods: tuple[str, ...] = ("padim",)
    backbones: tuple[BackboneEntry, ...] = (BackboneEntry(),)
    precisions: tuple[Variant, ...] = (Variant.TORCH,)
    score_merges: tuple[ScoreMerge, ...] = (ScoreMerge.MEAN,)  # the paper's
    seeds: tuple[int, ...] = (0,)
    parameters: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    format: Format = Format.OPENVINO
    held_out: float = HELD_OUT_FRACTION
    threshold: str = DEFAULT_RULE
    metrics_size: Size | None = None  # None: the setup's image size
    pro_limit: float = PRO_LIMIT
    spro_limit: float = SPRO_LIMIT  # of data sets that say how much of a region must be found
    training_device: str = "cpu"  # torch's name ("cuda", "cuda:1"): models are trained there, and measured as trained
    device: str = "CPU"  # of bundles
    execution: ExecutionPrecision = ExecutionPrecision.AUTO  # of bundles
    parity_tolerance: float | None = None  # of exports, as --parity-tolerance
    benchmark: BenchmarkEntry | None = None


def read_config(path: Path) -> Config:
    """The experiment in the TOML file ``path``.

    Raises:
        ConfigError: no such file, no TOML, a key that is unknown or missing, or a value that cannot be meant.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        return parse_config(table)
    except InputError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(table: dict[str, Any]) -> Config:
    """The experiment of a TOML table. Raises `ConfigError`, `InputError` or `GeometryError`."""
    setups = table.get("setups", [])
    if isinstance(setups, list):
        table = {**table, "setups": [_named_setup(item) if isinstance(item, str) else item for item in setups]}
    config: Config = from_plain(Config, table, "experiment", ConfigError)
    _check(config)
    return config


def expand(text: str) -> str:
    """``text`` with ``${NAME}`` replaced by variables of the environment. Raises `ConfigError` where one is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{text}: the environment variable {match[1]} is not set; set it to the folder meant")
        return os.environ[match[1]]

    return _VARIABLE.sub(value, text)


def _named_setup(name: str) -> dict[str, Any]:
    if name not in SETUPS:
        raise ConfigError(f"unknown setup {name!r}; known: {', '.join(SETUPS)}, or a table with name and sizes")
    setup = SETUPS[name]
    return {
        "name": name,
        "image_size": setup.image_size,
        "tile_size": setup.tile_size,
        "stride": setup.stride,
        "sharing": str(setup.sharing),
        "global_model": setup.global_model,
        "extractor_scope": str(setup.extractor_scope),
    }


def _check(config: Config) -> None:
    for key in ("datasets", "setups", "methods", "backbones", "precisions", "score_merges", "seeds"):
        if not getattr(config, key):
            raise ConfigError(f"{key}: expected at least one")
    _distinct("datasets", [entry.label for entry in config.datasets])
    _distinct("setups", [entry.name for entry in config.setups])
    _distinct("backbones", [entry.name for entry in config.backbones])
    for key in ("methods", "precisions", "score_merges", "seeds"):
        _distinct(key, getattr(config, key))
    for dataset in config.datasets:
        _member("layout", dataset.layout, LAYOUTS)
        _distinct(f"categories of {dataset.label}", dataset.categories)
    for method in (*config.methods, *config.parameters):
        _member("method", method, METHODS)
    for setup in config.setups:
        setup.setup.model_locations  # noqa: B018 - raises where the sizes make no grid
        if setup.global_model and config.score_merges != (ScoreMerge.MEAN,):
            raise ConfigError(f"setups: {setup.name} is fused for the mean of tiles: leave score_merges out")
        if setup.name in SETUPS and setup.setup.name != setup.name:
            raise ConfigError(f"setups: {setup.name} is a setup of the paper, of other sizes; choose another name")
    for backbone in config.backbones:
        backbone.weights_argument  # noqa: B018 - raises where a variable is not set
    if ThresholdRule.parse(config.threshold).statistic is Statistic.F1:
        raise ConfigError("threshold: 'f1' needs labelled images, but thresholds are fitted on held-out normal ones")
    for key in ("pro_limit", "spro_limit"):
        if not 0 < getattr(config, key) <= 1:
            raise ConfigError(f"{key}: expected a false-positive rate in (0, 1], but got {getattr(config, key)}")
    if not 0 < config.held_out < 1:
        raise ConfigError(f"held_out: expected a fraction between 0 and 1, but got {config.held_out}")
    _from_on("seeds", 0, config.seeds)
    _from_on("metrics_size", 1, config.metrics_size or ())
    _from_on("parity_tolerance", 0, [config.parity_tolerance])
    if config.benchmark is not None:
        for key, least in {"warmup": 0, "iterations": 1, "batch": 0, "throughput_iterations": 1}.items():
            _from_on(f"benchmark.{key}", least, [getattr(config.benchmark, key)])


def _from_on(key: str, least: int, values: Iterable[float | None]) -> None:
    if low := [value for value in values if value is not None and value < least]:
        raise ConfigError(f"{key}: expected {least} or more, but got {low[0]}")


def _distinct(key: str, values: Sequence[object]) -> None:
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ConfigError(f"{key}: {twice[0]} is there twice; results are filed under it, so give another name")


def _member(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {key} {value!r}; known: {', '.join(known)}")
