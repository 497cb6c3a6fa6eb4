"""Checks of an installation: packages, engines that load and compute, folders with room."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edge_ad.bundle.manifest import Format
from edge_ad.errors import EdgeAdError, pip_install
from edge_ad.runtime.sessions import ENGINES, import_engine, open_session

ENGINE_PACKAGES = ("openvino", "onnxruntime", "onnxruntime-gpu", "torch", "nncf")

# y = max(x, 0) on four numbers, in both formats
TINY_IR = """<?xml version="1.0"?>
<net name="doctor" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1">
      <data shape="1,4" element_type="f32"/>
      <output><port id="0" precision="FP32" names="x"><dim>1</dim><dim>4</dim></port></output>
    </layer>
    <layer id="1" name="y" type="ReLU" version="opset1">
      <input><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></input>
      <output><port id="1" precision="FP32" names="y"><dim>1</dim><dim>4</dim></port></output>
    </layer>
    <layer id="2" name="y/result" type="Result" version="opset1">
      <input><port id="0" precision="FP32"><dim>1</dim><dim>4</dim></port></input>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
    <edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>
  </edges>
</net>
"""
TINY_ONNX = base64.b64decode(
    "CAk6QAoMCgF4EgF5IgRSZWx1EgZkb2N0b3JaEwoBeBIOCgwIARIICgIIAQoCCARiEwoBeRIOCgwIARIICgIIAQoCCARCBAoAEBE="
)
TINY_GRAPHS = {Format.OPENVINO: ("tiny.xml", TINY_IR.encode()), Format.ONNX: ("tiny.onnx", TINY_ONNX)}
TRAINING_MODULES = (
    *("torch", "torchvision", "timm", "safetensors", "nncf", "onnx", "onnxscript"),
    *("sklearn", "matplotlib", "rich", "platformdirs"),
)
DISK_BYTES = 2_000_000_000  # a training run and its cache of decoded images


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"  # edge-ad runs, or runs in part
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, None where it is not there. Imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_checks() -> Iterator[Check]:
    """All checks, one after the other. One that raises has failed: what it raised is what it found."""
    yield Check("python", Status.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    checks: dict[str, Callable[[], Check | None]] = {
        "numpy": partial(check_module, "numpy", "numpy"),
        "OpenCV": partial(check_module, "OpenCV", "cv2"),
    }
    installed = [graph_format for graph_format in Format if _is_installed(graph_format)]
    if not installed:
        yield Check("engine", Status.FAIL, "none is installed", pip_install("openvino"))
    for graph_format in installed:
        checks[ENGINES[graph_format].package] = partial(check_engine, graph_format)
    checks |= {
        "training extra": check_training,
        "torchvision": check_torchvision,
        "working folder": lambda: check_folder("working folder", Path.cwd()),
        "temporary folder": lambda: check_folder("temporary folder", Path(tempfile.gettempdir())),
        "image cache": check_image_cache,
    }
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises: the other checks go on
            found = Check(name, Status.FAIL, f"{type(error).__name__}: {' '.join(str(error).split())}", "report this")
        if found:
            yield found


def check_module(name: str, module: str) -> Check:
    """Does a package of the base install load?"""
    try:
        loaded = import_module(module)
    except ImportError as error:
        return Check(
            name, Status.FAIL, f"does not load ({error})", "pip install --force-reinstall . in a checkout of edge-ad"
        )
    return Check(name, Status.OK, loaded.__version__)


def check_engine(graph_format: Format) -> Check:
    """Does the engine of a format load, compile a graph and compute it?"""
    engine = ENGINES[graph_format]
    try:
        module = import_engine(graph_format)
        with tempfile.TemporaryDirectory() as folder:
            name, content = TINY_GRAPHS[graph_format]
            path = Path(folder, name)
            path.write_bytes(content)
            session = open_session(path, graph_format)
            got = session.fetch(session.run({"x": np.array([[-1, 0, 1, 2]], np.float32)})["y"]).tolist()
            session.close()
    except EdgeAdError as error:
        installed = " ".join(name for name in _distributions(engine.package) if installed_version(name))
        remedy = f"pip install --force-reinstall {installed or engine.package}"
        if " " in installed:  # they write into one folder: which files are whose nobody knows
            remedy = f"pip uninstall {installed}, then install one of them"
        return Check(engine.package, Status.FAIL, str(error), remedy)
    if got != [[0, 0, 1, 2]]:
        return Check(engine.package, Status.FAIL, f"computes {got} where [[0, 0, 1, 2]] is right", "report this")
    devices = ", ".join(device.name for device in module.devices())
    return Check(engine.package, Status.OK, f"{_engine_version(engine.package)}, computes; devices: {devices}")


def check_training() -> Check:
    """Is the training extra whole?"""
    missing = [module for module in TRAINING_MODULES if not find_spec(module)]
    name = "training extra"
    if not missing:
        return Check(name, Status.OK, f"torch {installed_version('torch')}, timm {installed_version('timm')}")
    found = "not installed" if len(missing) == len(TRAINING_MODULES) else f"lacks {', '.join(missing)}"
    return Check(name, Status.WARN, found, f"needed to train, evaluate and export: {pip_install('train')}")


def check_torchvision() -> Check | None:
    """Is torchvision the release that goes with torch? It names that torch in its own metadata."""
    torch = installed_version("torch")
    if not torch or not installed_version("torchvision"):
        return None
    wanted = [line.split("==")[1] for line in requires("torchvision") or () if line.startswith("torch==")]
    found = f"torchvision {installed_version('torchvision')} with torch {torch}"
    if wanted and torch.partition("+")[0] != wanted[0]:
        return Check(
            "torchvision", Status.FAIL, f"{found}, but it is made for {wanted[0]}", f"install torch {wanted[0]}"
        )
    return Check("torchvision", Status.OK, found)


def check_image_cache() -> Check | None:
    """Is there room for decoded images, where anything that caches them is installed?"""
    if not find_spec("platformdirs"):
        return None
    from edge_ad.data.cache import default_cache_dir

    return check_folder("image cache", default_cache_dir(), "set EDGE_AD_CACHE to a folder with room")


def check_folder(name: str, folder: Path, remedy: str = "free some space, or work elsewhere") -> Check:
    """Can ``folder``, or what is there of its path, be written to, and is there room?"""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(name, Status.FAIL, f"{folder}: no permission to write", remedy)
    free_bytes = shutil.disk_usage(there).free
    status = Status.OK if free_bytes >= DISK_BYTES else Status.WARN
    return Check(name, status, f"{folder}: {free_bytes / 1e9:.1f} GB free", "" if status is Status.OK else remedy)


def _engine_version(package: str) -> str:
    versions = (found for name in _distributions(package) if (found := installed_version(name)))
    return next(versions, "of unknown version")


def _distributions(package: str) -> list[str]:
    """What installs ``package``: onnxruntime, or onnxruntime-gpu."""
    return [package, *(name for name in ENGINE_PACKAGES if name.startswith(f"{package}-"))]


def _is_installed(graph_format: Format) -> bool:
    return find_spec(ENGINES[graph_format].package) is not None
