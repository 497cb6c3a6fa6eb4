"""docs/experiment.md has every key of an experiment, with its default."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from edge_ad.data.layouts import LAYOUTS
from edge_ad.experiment.config import (
    BackboneEntry,
    BenchmarkEntry,
    Config,
    DatasetEntry,
    SetupEntry,
    Variant,
    parse_config,
)
from edge_ad.records import to_plain

PAGE = (Path(__file__).parents[2] / "docs" / "experiment.md").read_text(encoding="utf-8")
TABLES = {
    "## Keys": Config,
    "### `[[datasets]]`": DatasetEntry,
    "### `[[backbones]]`": BackboneEntry,
    "### Tables in `setups`": SetupEntry,
    "### `[benchmark]`": BenchmarkEntry,
}


def rows(heading: str) -> dict[str, str]:
    section = PAGE.split(f"\n{heading}\n")[1].split("\n#")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, re.MULTILINE))


def written(field: dataclasses.Field[object]) -> str:
    if field.default_factory is not dataclasses.MISSING or field.default is None:
        return "none"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default == Config.backbones:
        return "one, of defaults"
    return f"`{json.dumps(to_plain(field.default))}`"


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_is_there_with_its_default(heading: str) -> None:
    assert rows(heading) == {field.name: written(field) for field in dataclasses.fields(TABLES[heading])}


def test_every_precision_and_layout_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in (*Variant, *LAYOUTS))


def test_the_example_is_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AD_DATA", "/data")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    config = parse_config(tomllib.loads(example))
    assert [setup.name for setup in config.setups] == ["sm256", "ens9", "wide"]
    assert config.parameters == {"patchcore": {"bank_size": 2048}}
