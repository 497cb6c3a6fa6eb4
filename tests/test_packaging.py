"""setup.cfg against what is on disk and what is imported."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import pytest
from test_imports import ROOMS

ROOT = Path(__file__).parents[1]
LEAN = ("tiling", "imaging", "bundle", "runtime", "benchmarks", "cli")  # what an edge box runs
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn"}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def distributions(requirements: str) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0] for line in requirements.split("\n") if line}


def third_party(*rooms: str) -> set[str]:
    modules = {module for name in rooms for module in ROOMS[name].third_party | set(ROOMS[name].in_one_file)}
    return {DISTRIBUTIONS.get(module, module) for module in modules}


def test_one_place_says_how_to_install_an_extra(setup):
    """The extras it is asked for are there."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "edge_ad").rglob("*.py")}
    assert [path.name for path, text in sources.items() if "pip install '" in text] == ["errors.py"]
    asked = {extra for text in sources.values() for extra in re.findall(r"pip_install\([\"'](\w+)[\"']\)", text)}
    assert {"train", "cuda", "openvino", "signing"} <= asked <= set(setup["options.extras_require"])


def test_every_package_is_installed(setup):
    inner = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "edge_ad").rglob("__init__.py")}
    listed = set(setup["options"]["packages"].split())
    assert listed == inner | {"edge_ad.exporters", "edge_ad.benchmarks"}


def test_the_base_and_one_engine_are_all_that_an_edge_box_needs(setup):
    extras = setup["options.extras_require"]
    base = distributions(setup["options"]["install_requires"])
    engines = distributions(extras["openvino"]) | distributions(extras["onnxruntime"])
    done_without = {"onnx"}  # a benchmark on a GPU measures no ceilings there
    assert third_party(*LEAN) - done_without == base | engines | distributions(extras["signing"])


def test_the_training_extra_covers_every_import(setup):
    extras = setup["options.extras_require"]
    base = distributions(setup["options"]["install_requires"])
    assert third_party(*ROOMS) <= base | distributions(extras["train"]) | distributions(extras["signing"])


def test_what_ci_runs_is_what_setup_allows(setup):
    """Every pinned distribution is one that we ask for: a typing error in constraints.txt would pin nothing."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = setup["options.extras_require"]
    asked_for = distributions("\n".join([setup["options"]["install_requires"], extras["train"], extras["dev"]]))
    assert pinned.keys() <= asked_for
    assert {"torch", "torchvision", "timm", "ruff", "mypy"} <= pinned.keys()


def test_make_without_a_target_lists_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    listed = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert listed == {"help", "demo", "test", "check", "docs", "clean"}
    assert ".DEFAULT_GOAL := help" in makefile


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_the_ci_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
