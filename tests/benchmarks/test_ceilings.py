from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_fakes import HEAD_BYTES, HEAD_FLOPS, SHARED_BYTES, SHARED_FLOPS, make_manifest

from edge_ad.benchmarks.ceilings import (
    Ceilings,
    ComputeCeiling,
    compare,
    executed_precisions,
    measure_ceilings,
)
from edge_ad.bundle.manifest import Precision
from edge_ad.setups import Sharing

INT8 = ComputeCeiling("int8", 400.0, "test int8")
F32 = ComputeCeiling("f32", 100.0, "test f32")


@pytest.mark.parametrize("sharing", Sharing)
def test_operations_are_counted_once_per_tile(sharing):
    assert make_manifest(sharing=sharing).flops_per_image == 4 * SHARED_FLOPS + 4 * HEAD_FLOPS
    assert make_manifest(sharing=sharing, shared=False).flops_per_image == 4 * HEAD_FLOPS


def test_quantised_graphs_count_as_int8_and_others_as_what_their_session_reports():
    sessions = ("bf16", "f32", "f32", "f32", "f32")
    assert executed_precisions(make_manifest(), sessions) == ("int8", *sessions[1:])
    assert executed_precisions(make_manifest(precision=Precision.FP32), sessions) == sessions


def test_the_compute_bound_weighs_each_graph_by_its_own_ceiling():
    precisions = ("int8", "f32", "f32", "f32", "f32")
    achieved = compare(make_manifest(), precisions, Ceilings((INT8, F32), 1000.0), bare_ms=0.1)
    compute_ms = 4 * SHARED_FLOPS / 400e9 * 1e3 + 4 * HEAD_FLOPS / 100e9 * 1e3
    assert achieved.compute_bound_ms == pytest.approx(compute_ms)
    assert achieved.memory_bound_ms == pytest.approx((SHARED_BYTES + 4 * HEAD_BYTES) / 1000e9 * 1e3)
    assert achieved.ceiling_percent == pytest.approx(100 * compute_ms / 0.1)
    assert achieved.gflops_per_s == pytest.approx((4 * SHARED_FLOPS + 4 * HEAD_FLOPS) / 1e-4 / 1e9)
    assert achieved.ceiling == "int8: test int8; f32: test f32"


def test_the_memory_bound_counts_where_it_is_the_larger():
    achieved = compare(make_manifest(), ("int8", *["f32"] * 4), Ceilings((INT8, F32), 1e-3), bare_ms=1.0)
    assert achieved.ceiling_percent == pytest.approx(100 * achieved.memory_bound_ms)
    assert achieved.ceiling == "numpy copy of a large array"


def test_without_a_ceiling_no_share_is_claimed():
    achieved = compare(make_manifest(), ("int8", *["f32"] * 4), Ceilings((F32,), None), bare_ms=1.0)
    assert (achieved.compute_bound_ms, achieved.memory_bound_ms, achieved.ceiling_percent) == (None, None, None)
    assert achieved.ceiling == "none: nothing here measures int8"


def test_the_first_ceiling_of_a_precision_is_used():
    own = ComputeCeiling("f32", 50.0, "engine")
    assert Ceilings((own, F32), None).of("f32") is own


def test_a_device_no_engine_knows_has_no_ceilings():
    assert measure_ceilings("TPU", ["f32"], None) == Ceilings((), None)


def test_the_cpu_is_measured_in_the_precisions_that_ran():
    pytest.importorskip("openvino")
    ceilings = measure_ceilings("CPU", ["f32", "int8"], 1)
    assert [each.precision for each in ceilings.compute] == ["f32", "int8", "f32"]
    assert ceilings.of("f32").source == "OpenVINO matrix product on CPU"
    values = [each.gflops_per_s for each in ceilings.compute] + [ceilings.copy_gb_per_s]
    assert np.isfinite(values).all()
    assert min(values) > 0


def test_a_precision_that_the_device_does_not_compute_in_has_no_ceiling(monkeypatch):
    pytest.importorskip("openvino")
    from edge_ad.benchmarks import openvino_probe

    def rate(device, precision, threads):
        if precision == "int8":
            raise RuntimeError("Wrong value")
        return 2e9

    monkeypatch.setattr(openvino_probe, "knows", lambda device: True)
    monkeypatch.setattr(openvino_probe, "matmul_flops_per_s", rate)
    of_npu = ComputeCeiling("f16", 2.0, "OpenVINO matrix product on NPU")
    assert measure_ceilings("NPU", ["int8", "f16"], None) == Ceilings((of_npu,), None)


@pytest.mark.parametrize(
    ("available", "device", "known"),
    [(["CPU", "GPU"], "GPU.0", True), (["CPU", "GPU"], "GPU.1", False), (["GPU.0", "GPU.1"], "GPU.1", True)],
)
def test_a_session_s_device_is_found_among_those_listed(monkeypatch, available, device, known):
    pytest.importorskip("openvino")
    from edge_ad.benchmarks import environment, openvino_probe
    from edge_ad.runtime.devices import DeviceInfo

    monkeypatch.setattr(openvino_probe, "core", lambda: SimpleNamespace(available_devices=available))
    assert openvino_probe.knows(device) is known
    listed = [DeviceInfo(name, f"the maker's {name}", "OpenVINO", ()) for name in available]
    monkeypatch.setattr(environment, "_devices", lambda graph_format: listed)
    assert environment._device_name(device).startswith("the maker's") is known


def test_the_int8_chain_is_executed_in_int8():
    pytest.importorskip("openvino")
    from edge_ad.benchmarks import openvino_probe
    from edge_ad.runtime.openvino_session import core

    compiled = core().compile_model(openvino_probe._chain(int8=True), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [info["runtimePrecision"].value for info in facts if info["layerType"].value == "FullyConnected"]
    assert len(products) == openvino_probe._CHAIN
    assert set(products) <= {"u8", "i8"}


def test_facts_openvino_does_not_tell_are_none():
    pytest.importorskip("openvino")
    from edge_ad.benchmarks import openvino_probe

    assert openvino_probe.driver("CPU") is None
    assert openvino_probe.device_memory_bytes("CPU") is None
    assert openvino_probe.driver("CUDA:0") is None
