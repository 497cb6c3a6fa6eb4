"""The cells of an experiment: data set x category x method x backbone x setup x seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.data.layouts import LAYOUTS, SATURATED_LAYOUTS
from edge_ad.errors import DataNotFoundError
from edge_ad.experiment.config import BackboneEntry, BenchmarkEntry, Config, DatasetEntry, SetupEntry, Variant
from edge_ad.experiment.named_files import PARAMETERS, digests
from edge_ad.experiment.record import Identity
from edge_ad.methods import method_class
from edge_ad.methods.parameters import parameters
from edge_ad.records import to_plain


@dataclass(frozen=True)
class Cell:
    """What is trained once, and measured in every precision and with every score merge.

    Attributes:
        config: the experiment it belongs to.
        category: as `read_dataset` takes it; None where the data set is one category.
    """

    config: Config
    dataset: DatasetEntry
    category: str | None
    method: str
    backbone: BackboneEntry
    setup: SetupEntry
    seed: int

    @property
    def parameters(self) -> dict[str, Any]:
        """What the configuration's table of the method says."""
        given = self.config.parameters.get(self.method, {})
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the method; of backbone and seed only what it has."""
        common: dict[str, Any] = {"seed": self.seed}
        if _has_backbone(self.method):  # weights are another file to a method without
            backbone = self.backbone
            common |= {"backbone": backbone.name, "layers": backbone.layers, "weights": backbone.weights_argument}
        known = parameters(method_class(self.method))
        return {key: value for key, value in common.items() if key in known} | self.parameters

    @property
    def benchmark(self) -> BenchmarkEntry | None:
        """Only of the first seed: other seeds have other numbers in the same graphs, and cost the same."""
        return self.config.benchmark if self.seed == self.config.seeds[0] else None

    def identity(self, variant: Variant, merge: ScoreMerge) -> Identity:
        """Of one line."""
        category = self.category or self.dataset.root.resolve().name
        return Identity(
            self.dataset.label, category, self.method, self.backbone.name, self.setup.name, self.seed, variant, merge
        )

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Of every line this cell gives."""
        return tuple(self.identity(*each) for each in product(self.config.precisions, self.config.score_merges))

    def settings(self, variant: Variant) -> dict[str, Any]:
        """Everything beside the identity that decides a line, as JSON has it."""
        config = self.config
        measured: dict[str, Any] = {"metrics_size": config.metrics_size, "pro_limit": config.pro_limit}
        if self.dataset.layout in SATURATED_LAYOUTS:  # others do not depend on it
            measured["spro_limit"] = config.spro_limit
        if variant.precision is not None:
            measured |= {
                "format": config.format,
                "device": config.device,
                "execution": config.execution,
                "parity_tolerance": config.parity_tolerance,
                "benchmark": self.benchmark,
            }
        plain: dict[str, Any] = to_plain({**self._training, **measured, **self._files})
        return plain

    @property
    def _files(self) -> dict[str, dict[str, str]]:
        """What the files are that settings name; nothing where they name none."""
        found = digests({key: value for key, value in self.arguments.items() if key in PARAMETERS})
        return {"files": found} if found else {}

    @property
    def _training(self) -> dict[str, Any]:
        # Without fields at their defaults: results of before there were these stay good
        setup, device = self.setup.setup, self.config.training_device
        fields = (field for field in dataclasses.fields(setup) if getattr(setup, field.name) != field.default)
        return {
            **({"training_device": device} if device != Config.training_device else {}),
            "path": self.dataset.path,
            "layout": self.dataset.layout,
            "setup": {field.name: getattr(setup, field.name) for field in fields},
            "weights": self.backbone.weights,
            "layers": self.backbone.layers,
            "parameters": self.parameters,
            "held_out": self.config.held_out,
            "threshold": self.config.threshold,
        }

    @property
    def folder_name(self) -> str:
        """Of its run and bundles: other settings or other files that these name, other folder."""
        trained_by = to_plain({**self._training, **self._files})
        digest = hashlib.sha256(json.dumps(trained_by, sort_keys=True).encode()).hexdigest()[:8]
        first = self.identities[0]
        parts = (first.dataset, first.category, first.method, first.backbone, first.setup, f"seed{first.seed}", digest)
        return "-".join(parts).replace("/", "_")

    def __str__(self) -> str:
        first = self.identities[0]
        return f"{first.dataset}/{first.category} {first.method} {first.backbone} {first.setup} seed {first.seed}"


def cells(config: Config) -> Iterator[Cell]:
    """Every cell, the seeds outermost: a table without deviations is complete early.

    A method without a backbone has its cells below the first one alone.

    Raises:
        DataNotFoundError, LayoutError: categories were to be looked up, and the data set is not there.
    """
    categories = [(dataset, category) for dataset in config.datasets for category in _categories(dataset)]
    for seed, (dataset, category), method, backbone, setup in product(
        config.seeds, categories, config.methods, config.backbones, config.setups
    ):
        if backbone is config.backbones[0] or _has_backbone(method):
            yield Cell(config, dataset, category, method, backbone, setup, seed)


def _has_backbone(method: str) -> bool:
    return "backbone" in parameters(method_class(method))


def _categories(dataset: DatasetEntry) -> tuple[str | None, ...]:
    if dataset.categories:
        return dataset.categories
    if not dataset.root.is_dir():
        raise DataNotFoundError(f"data folder {dataset.root} not found")
    return tuple(LAYOUTS[dataset.layout].categories(dataset.root)) or (None,)
