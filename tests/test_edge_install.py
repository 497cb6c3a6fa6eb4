"""What an edge box gets: the wheel with one engine in an empty environment, and it works there without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import some_image, tiny_setup, write_tiny_bundle

from edge_ad.imaging import write_png

ROOT = Path(__file__).parents[1]
MAX_DISTRIBUTIONS = 8
MAX_SIZE_MB = 440  # with the newest of each: OpenVINO 185, OpenCV 159, numpy 71 (November 2026)
MAX_OWN_SIZE_MB = 3  # sources and their compiled form, those of training among them: 2.3 (November 2026)
TOOLS = ("pip", "setuptools")  # come with every environment, and are not counted
LIST_DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps({found.name: found.version for found in importlib.metadata.distributions()}))
"""

pytestmark = [pytest.mark.install, pytest.mark.slow]
Completed = subprocess.CompletedProcess[str]
EdgeBox = Callable[..., Completed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the environment ``env``, a bundle and an image."""
    path = tmp_path_factory.mktemp("edge")
    write_tiny_bundle(path / "tiny.edgead")
    write_png(path / "noise.png", some_image(tiny_setup()))
    return path


@pytest.fixture(scope="module")
def edge_box(folder: Path) -> EdgeBox:
    """Runs a program of an environment that holds ``edge-ad[openvino]`` from its wheel, and nothing else."""
    probe = _pip(sys.executable, "download", "--no-deps", "--retries", "0", "--dest", folder / "probe", "click")
    if probe.returncode:
        pytest.skip(f"the package registry cannot be reached: {probe.stderr.strip()[-200:]}")
    # From a copy: building in place leaves build/ behind, and packs what an earlier build left there.
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    _must(_pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"))
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    _must(_pip(programs / "python", "install", f"{wheel}[openvino]"))
    return lambda program, *arguments: _run(programs / program, *arguments, cwd=folder)


def test_few_distributions_and_no_torch(edge_box: EdgeBox) -> None:
    found = json.loads(_must(edge_box("python", "-c", LIST_DISTRIBUTIONS)).stdout)
    ours = {name: version for name, version in found.items() if name not in TOOLS}
    print(f"\nedge install: {len(ours)} distributions: {ours}")
    assert "edge-ad" in ours
    assert "torch" not in ours
    assert len(ours) <= MAX_DISTRIBUTIONS


def test_it_is_small(edge_box: EdgeBox, folder: Path) -> None:
    (site_packages,) = (folder / "env").rglob("site-packages")
    sizes_bytes = {
        package.name: sum(file.stat().st_size for file in (package, *package.rglob("*")) if file.is_file())
        for package in site_packages.iterdir()
        if not package.name.startswith((*TOOLS, "_distutils_hack", "distutils-precedence", "pkg_resources"))
    }
    size_mb = sum(sizes_bytes.values()) / 1e6
    largest = sorted(sizes_bytes, key=lambda name: -sizes_bytes[name])[:5]
    print(f"\nedge install: {size_mb:.0f} MB:", ", ".join(f"{name} {sizes_bytes[name] / 1e6:.0f}" for name in largest))
    assert size_mb <= MAX_SIZE_MB
    assert sizes_bytes["edge_ad"] / 1e6 <= MAX_OWN_SIZE_MB


def test_a_bundle_works_there(edge_box: EdgeBox, folder: Path) -> None:
    assert _must(edge_box("edge-ad", "verify", "tiny.edgead")).stdout.endswith("verified\n")
    _must(edge_box("edge-ad", "predict", "tiny.edgead", "noise.png", "-o", "out"))
    (record,) = (json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines())
    assert record["source"] == "noise.png"
    assert (folder / "out" / record["overlay"]).stat().st_size > 0
    quick = ("--warmup", 1, "--iterations", 3, "--batch", 0, "--json", "-")
    report = json.loads(_must(edge_box("edge-ad", "benchmark", "tiny.edgead", *quick)).stdout)
    assert report


def test_it_says_what_is_missing(edge_box: EdgeBox) -> None:
    assert _must(edge_box("edge-ad", "doctor")).stdout.count("\nwarn  training extra") == 1
    train = edge_box("edge-ad", "train", "--data", ".", "-o", "run")
    assert train.returncode == 4
    assert "pip install '.[train]'" in train.stderr


def _pip(python: str | Path, *arguments: object) -> Completed:
    return _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(program: str | Path, *arguments: object, cwd: Path | None = None) -> Completed:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGE_AD"))}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _must(run: Completed) -> Completed:
    assert run.returncode == 0, f"{run.args}\n{run.stdout}{run.stderr}"
    return run
