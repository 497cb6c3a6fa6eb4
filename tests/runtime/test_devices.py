from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from edge_ad.runtime.devices import DeviceInfo, list_devices, listed_as, not_found, split_device


def test_the_cpu_is_found_by_every_engine() -> None:
    cpus = {info.engine: info for info in list_devices() if info.name == "CPU"}
    assert list(cpus) == ["OpenVINO", "ONNX Runtime"]
    assert cpus["ONNX Runtime"].precisions == ("f32",)
    assert "f32" in cpus["OpenVINO"].precisions
    assert all(isinstance(info, DeviceInfo) and info.full_name for info in cpus.values())


def test_an_engine_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "edge_ad.runtime.devices.find_spec",
        lambda name, *more: None if name == "openvino" else find_spec(name, *more),
    )
    assert {info.engine for info in list_devices()} == {"ONNX Runtime"}


@pytest.mark.parametrize(
    ("device", "engine", "remedy"),
    [
        ("CUDA:1", "OpenVINO", "NVIDIA devices run bundles of edge-ad export --format onnx"),
        ("TENSORRT", "ONNX Runtime", "pip install '.[cuda]' in a checkout of edge-ad, after pip uninstall onnxruntime"),
        ("GPU", "ONNX Runtime", "Intel devices run bundles of edge-ad export --format openvino"),
        ("GPU", "OpenVINO", "found: CPU"),
        ("CPU:1", "ONNX Runtime", "there is none of this number"),
    ],
)
def test_a_device_of_the_other_engine_comes_with_its_remedy(device: str, engine: str, remedy: str) -> None:
    assert str(not_found(device, engine, ["CPU"])).endswith(f"; {remedy}")


def test_only_gpus_are_numbered() -> None:
    assert [listed_as(device, ["CPU", "GPU"]) for device in ("GPU.0", "CPU.0", "GPU.1")] == ["GPU", None, None]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("CPU", ("", ("CPU",))),
        ("CUDA:1", ("", ("CUDA:1",))),
        ("AUTO:GPU,CPU", ("AUTO", ("GPU", "CPU"))),
        ("MULTI:GPU.1,NPU", ("MULTI", ("GPU.1", "NPU"))),
        ("HETERO", ("", ("HETERO",))),
    ],
)
def test_device_strings(device: str, expected: Any) -> None:
    assert split_device(device) == expected
