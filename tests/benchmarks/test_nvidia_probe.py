"""Facts of an NVIDIA GPU, from a stand-in for nvidia-smi; the arithmetic of the product's probe, on the CPU."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from edge_ad.benchmarks import nvidia_probe


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool that answers for GPU 1 alone, and says that this process holds 512 MiB there."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$1 $4" in\n'
        '"--query-gpu=name 1") echo "NVIDIA Test" ;;\n'
        '"--query-gpu=driver_version 1") echo 580.1 ;;\n'
        f'"--query-compute-apps=pid,used_memory 1") echo "1, 99"; echo "{os.getpid()}, 512" ;;\n'
        "*) exit 6 ;;\n"
        "esac\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tool


def test_facts_of_a_gpu(nvidia_smi: Path) -> None:
    assert nvidia_probe.full_name("CUDA:1") == nvidia_probe.full_name("TENSORRT:1") == "NVIDIA Test"
    assert nvidia_probe.driver("CUDA:1") == "580.1"
    assert nvidia_probe.memory_bytes("CUDA:1") == 512 * 2**20


def test_a_gpu_that_is_not_there(nvidia_smi: Path) -> None:
    assert nvidia_probe.full_name("CUDA") is nvidia_probe.driver("CUDA") is nvidia_probe.memory_bytes("CUDA") is None
    nvidia_smi.write_text("#!/bin/sh\necho 'Field \"pid\" is not valid'\n", encoding="utf-8")
    assert nvidia_probe.memory_bytes("CUDA:1") is None
    nvidia_smi.unlink()
    assert nvidia_probe.full_name("CUDA:1") is None


@pytest.mark.parametrize(("device", "known"), [("CUDA", True), ("TENSORRT:2", True), ("CPU", False), ("GPU.1", False)])
def test_whose_device(device: str, known: bool) -> None:
    assert nvidia_probe.knows(device) is known


def test_the_chain_of_products_is_what_it_says() -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    from edge_ad.benchmarks import onnxruntime_probe as probe

    assert probe.matmul_flops_per_s("CPU", "f32", side=32) > 0
    for precision, kind in (("f32", onnx.TensorProto.FLOAT), ("f16", onnx.TensorProto.FLOAT16)):
        model = probe._chain(probe._FLOATS[precision], 32)
        onnx.checker.check_model(model, full_check=True)
        weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
        assert model.graph.initializer[0].data_type == kind
        (out,) = reference.ReferenceEvaluator(model).run(None, {"scale": np.ones((1, 1), np.float32)})
        expected = np.linalg.matrix_power(weights.astype(np.float64), probe._CHAIN + 1).max()
        assert out[0, 0] == pytest.approx(expected, rel=0.02 if precision == "f16" else 1e-4)
