"""In processes of their own: what was imported before stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino_telemetry")

# OpenVINO sends from a fork, NNCF and ONNX Runtime from threads: first of all they note in the user's home who it is.
WATCH = """
import os, sys, threading
assert "CI" not in os.environ
forks = []
os.register_at_fork(before=lambda: forks.append(threading.current_thread().name))
"""
REPORT = """
import time
time.sleep(0.5)
print(forks, sorted(set(sys.modules) & {"openvino_telemetry"}))
import openvino_telemetry
"""
ENGINES = """
from edge_ad.bundle.manifest import Format
from edge_ad.runtime.sessions import import_engine
for each in Format:
    import_engine(each)
"""
EXPORTS = """
import numpy as np, torch
from edge_ad.bundle.manifest import Format
from edge_ad.exporters import openvino_ir
from edge_ad.exporters.quantisation import quantise
from edge_ad.runtime.session import TensorSpec
from edge_ad.training.torch_graph import TorchGraph
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
spec = TensorSpec("x", (1, 3, 8, 8), "float32")
model = openvino_ir.convert(TorchGraph(module, (spec,), (TensorSpec("y", (1, 4, 6, 6), "float32"),)))
quantise(model, [{"x": np.ones(spec.shape, np.float32)}], Format.OPENVINO)
"""


def run(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "HOME": str(home), "XDG_CACHE_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("work", [ENGINES, EXPORTS], ids=["engines", "exports"])
def test_nothing_is_reported(tmp_path, work):
    found = run(WATCH + work + REPORT, tmp_path / "home")
    assert found.stdout.splitlines()[-1] == "[] []"
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_what_would_be_reported(tmp_path, engine):
    """These tests notice it: else the one above would say nothing. By way of a proxy that is not there."""
    code = WATCH + f"import {engine}\n" + REPORT
    found = run(code, tmp_path / "home", https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    if engine == "openvino":
        assert found.stdout.splitlines()[-1].startswith("['")  # a fork
    assert [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
