from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from edge_ad.bundle.manifest import Format
from edge_ad.exporters import openvino_ir
from edge_ad.exporters.quantisation import quantise
from edge_ad.exporters.telemetry import no_telemetry
from edge_ad.runtime.session import TensorSpec
from edge_ad.training.torch_graph import TorchGraph

telemetry = pytest.importorskip("openvino_telemetry")


@pytest.mark.parametrize("before", [None, "false"])
def test_the_environment_is_as_before(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", before)
    with no_telemetry():
        assert telemetry.utils.opt_in_checker.OptInChecker()._run_in_ci()
    assert os.environ.get("CI") == before


def test_converting_and_quantising_send_nothing(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    sent = []
    monkeypatch.setattr(telemetry.utils.sender.TelemetrySender, "send", lambda *arguments: sent.append(arguments))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    spec = TensorSpec("x", (1, 3, 8, 8), "float32")
    model = openvino_ir.convert(TorchGraph(module, (spec,), (TensorSpec("y", (1, 4, 6, 6), "float32"),)))
    quantise(model, [{"x": np.ones(spec.shape, np.float32)}], Format.OPENVINO)
    assert sent == []
