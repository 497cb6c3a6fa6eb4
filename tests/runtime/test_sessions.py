"""One contract for every session: the fake that other tests use, OpenVINO and ONNX Runtime."""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from fake_session import FakeSession
from tiny_bundle import WRITERS, expected_tile, head_constants

from edge_ad.bundle.manifest import Format
from edge_ad.errors import (
    DeviceFallbackError,
    DeviceNotFoundError,
    EngineMissingError,
    GraphFormatError,
    InferenceError,
    InputError,
    UnsupportedPrecisionError,
)
from edge_ad.runtime.session import ExecutionPrecision, Session, TensorSpec
from edge_ad.runtime.sessions import ENGINES, import_engine, open_session
from edge_ad.tiling import Location

TILE, BATCH, LOCATION = (23, 29), 3, Location(1, 2)
F32 = ExecutionPrecision.F32
Make = Callable[..., tuple[Session, Session]]


@pytest.fixture(params=["fake", *Format])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens (shared, head)."""

    def open_both(batch_size: int = BATCH) -> tuple[Session, Session]:
        if request.param == "fake":
            return FakeSession(TILE, None, batch_size), FakeSession(TILE, LOCATION, batch_size)
        write_shared, write_head = WRITERS[request.param]
        paths = [
            write_shared(tmp_path / "shared", TILE)[0],
            write_head(tmp_path / "head", TILE, *head_constants(LOCATION))[0],
        ]
        shared, head = (open_session(path, request.param, precision=F32, batch_size=batch_size) for path in paths)
        return shared, head

    return open_both


def _images(batch_size: int = BATCH, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (batch_size, *TILE, 3), dtype=np.uint8)


def test_inputs_and_outputs_by_name(make: Make) -> None:
    shared, head = make()
    assert shared.inputs == {"image": TensorSpec("image", (BATCH, *TILE, 3), "uint8")}
    assert shared.outputs == {"features": TensorSpec("features", (BATCH, 1, *TILE), "float32")}
    assert dict(head.inputs) == {**shared.outputs, **shared.inputs}
    assert head.outputs == {
        "anomaly_map": TensorSpec("anomaly_map", (BATCH, 1, *TILE), "float32"),
        "pred_score": TensorSpec("pred_score", (BATCH,), "float32"),
    }
    assert (shared.device, shared.precision) == ("CPU", "f32")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_pass_from_session_to_session(make: Make, batch_size: int) -> None:
    shared, head = make(batch_size)
    for seed in range(3):  # buffers are reused: the last images count
        images = _images(batch_size, seed)
        features = shared.run({"image": images})
        outputs = head.run({"image": images, "features": features["features"]})
        maps, scores = head.fetch(outputs["anomaly_map"]), head.fetch(outputs["pred_score"])
        assert maps.shape == (batch_size, 1, *TILE)
        assert maps.dtype == scores.dtype == np.float32
        for image, anomaly_map, score in zip(images, maps[:, 0], scores, strict=True):
            expected_map, expected_score = expected_tile(image, LOCATION)
            np.testing.assert_allclose(anomaly_map, expected_map, atol=1e-6)  # float32 sums of three terms
            assert score == pytest.approx(expected_score, abs=1e-6)


def test_an_array_is_as_good_as_a_handle(make: Make) -> None:
    shared, head = make()
    images = _images()
    handle = shared.run({"image": images})["features"]
    by_handle = head.fetch(head.run({"image": images, "features": handle})["pred_score"]).copy()
    array = shared.fetch(handle).copy()
    np.testing.assert_array_equal(head.fetch(head.run({"image": images, "features": array})["pred_score"]), by_handle)


def test_outputs_are_views_on_the_cpu(make: Make) -> None:
    shared, _ = make()
    handle = shared.run({"image": _images()})["features"]
    assert np.shares_memory(shared.fetch(handle), shared.fetch(handle))


def test_what_is_fed_again_is_read_again(make: Make) -> None:
    """A session may leave an array bound: what is written into it counts none the less, and so does another one."""
    shared, _ = make()
    buffer, other = _images(seed=0), _images(seed=1)
    for wanted in (_images(seed=2), _images(seed=3)):
        buffer[:] = wanted
        for images in (buffer, other, buffer, buffer):
            features = shared.fetch(shared.run({"image": images})["features"])
            np.testing.assert_allclose(features[:, 0], images.mean(-1) / 255, atol=1e-6)


def test_openvino_binds_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To bind a tensor makes the plugin wire its graph anew, which took a hundredth of an inference."""
    shared, head = (
        open_session(path, Format.OPENVINO, batch_size=BATCH)
        for path in (
            WRITERS[Format.OPENVINO][0](tmp_path / "shared", TILE)[0],
            WRITERS[Format.OPENVINO][1](tmp_path / "head", TILE, *head_constants(LOCATION))[0],
        )
    )
    bound: list[str] = []
    set_tensor = ov.InferRequest.set_tensor
    monkeypatch.setattr(
        ov.InferRequest, "set_tensor", lambda self, name, tensor: bound.append(name) or set_tensor(self, name, tensor)
    )
    images = _images()
    for _ in range(3):
        outputs = head.run({"image": images, **shared.run({"image": images})})
    assert sorted(bound) == ["features", "image", "image"]
    assert head.run({"image": images, **shared.run({"image": images})})["pred_score"] is outputs["pred_score"]


def test_an_output_that_the_engine_has_moved_is_another_handle() -> None:
    from edge_ad.runtime.openvino_session import OpenvinoSession

    tensors = [ov.Tensor(np.full(2, number, np.float32)) for number in (1, 2)]

    class Request:
        given = iter((tensors[0], tensors[0], tensors[1]))

        def get_tensor(self, name: str) -> ov.Tensor:
            return next(self.given)

    session = OpenvinoSession.__new__(OpenvinoSession)
    session._handles, session.device = {}, "CPU"
    first, again, moved = (session._output(Request, "map") for Request in [Request()] * 3)
    assert first is again
    np.testing.assert_array_equal(session.fetch(moved), [2, 2])


@pytest.mark.parametrize(
    "image",
    [np.zeros((BATCH, *TILE, 3), np.float32), np.zeros((BATCH + 1, *TILE, 3), np.uint8), np.zeros(3, np.uint8)],
    ids=["dtype", "batch", "rank"],
)
def test_wrong_inputs_are_errors(make: Make, image: Any) -> None:
    shared, _ = make()
    with pytest.raises(InferenceError):
        shared.run({"image": image})


def test_a_missing_input_is_an_error(make: Make) -> None:
    _, head = make()
    with pytest.raises(InferenceError, match="features"):
        head.run({"image": _images()})


def test_closed(make: Make) -> None:
    shared, _ = make()
    shared.close()
    shared.close()
    with pytest.raises(InferenceError, match="closed"):
        shared.run({"image": _images()})


@pytest.fixture(params=Format)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Format]:
    return WRITERS[request.param][0](tmp_path / "graph", TILE)[0], request.param


@pytest.mark.parametrize("device", ["TPU", "cpu", "CPU:1", "", "AUTO:", "HETERO", "AUTO:CPU,TPU", "CUDA:x"])
def test_devices_that_are_not_there(graph: tuple[Path, Format], device: str) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"finds here; found: .*CPU"):
        open_session(*graph, device)


def test_openvino_devices(tmp_path: Path) -> None:
    path = WRITERS[Format.OPENVINO][0](tmp_path / "graph", TILE)[0]
    for device in ("CPU", "AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"):
        session = open_session(path, Format.OPENVINO, device, precision=F32)
        assert (session.device.strip("()"), session.precision) == ("CPU", "f32"), device


@pytest.mark.parametrize(
    ("available", "device", "found"),
    [
        (["CPU", "GPU"], "GPU", True),
        (["CPU", "GPU"], "GPU.0", True),
        (["CPU", "GPU"], "GPU.1", False),
        (["CPU", "GPU.0", "GPU.1"], "GPU", True),
        (["CPU", "GPU.0", "GPU.1"], "HETERO:GPU.1,CPU", True),
        (["CPU", "GPU.0", "GPU.1"], "GPU.2", False),
        (["CPU", "NPU"], "AUTO:NPU,CPU", True),
    ],
)
def test_openvino_device_names(monkeypatch: pytest.MonkeyPatch, available: list[str], device: str, found: bool) -> None:
    from edge_ad.runtime import openvino_session

    class Core:
        available_devices = available

    monkeypatch.setattr(openvino_session, "core", Core)
    if found:
        openvino_session._check_device(device)
    else:
        with pytest.raises(DeviceNotFoundError, match=f"'{device}' is not one .* found: {', '.join(available)}"):
            openvino_session._check_device(device)


def test_other_devices_are_not_looked_for_where_the_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """To list them the engine loads the plugins of all."""
    from edge_ad.runtime import openvino_session

    monkeypatch.setattr(openvino_session, "core", lambda: pytest.fail("the engine was asked"))
    assert openvino_session._check_device("CPU") == ("CPU",)


def test_auto_does_not_begin_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it runs on the CPU until the GPU has compiled, and changes over in the middle of a stream."""
    from edge_ad.runtime import openvino_session

    monkeypatch.setattr(openvino_session, "bf16_is_slow", lambda: True)

    def config(device: str, precision: str = "auto") -> dict[str, Any]:
        return openvino_session._config(device, ExecutionPrecision(precision), None, None)

    latency = {"PERFORMANCE_HINT": "LATENCY"}
    on_cpus = {"DEVICE_PROPERTIES": {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}}
    assert config("AUTO:GPU,CPU") == latency | {"ENABLE_STARTUP_FALLBACK": False} | on_cpus
    assert config("HETERO:GPU,CPU") == latency | on_cpus
    assert config("GPU", "f16") == latency | {"INFERENCE_PRECISION_HINT": "f16"}


@pytest.mark.parametrize(("answer", "device"), [("NPU", "NPU"), (["GPU.0"], "GPU.0"), (["CPU", "GPU"], "CPU,GPU")])
def test_the_device_as_plugins_tell_it(answer: str | list[str], device: str) -> None:
    from edge_ad.runtime.openvino_session import _executed_device

    class Compiled:
        def get_property(self, name: str) -> str | list[str]:
            assert name == "EXECUTION_DEVICES"
            return answer

    assert _executed_device(Compiled()) == device


def test_the_gist_of_an_engine_s_message() -> None:
    from edge_ad.runtime.openvino_session import _gist

    assert _gist(RuntimeError("Exception from a.cpp:1:\nno such operation\n; ")) == "no such operation"
    assert _gist(RuntimeError()) == "RuntimeError"


def test_threads_are_the_cpu_s(graph: tuple[Path, Format], monkeypatch: pytest.MonkeyPatch) -> None:
    path, graph_format = graph
    if graph_format is Format.OPENVINO:
        monkeypatch.setattr("edge_ad.runtime.openvino_session._check_device", lambda device: (device,))
    else:
        ort = pytest.importorskip("onnxruntime")
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    device = "GPU" if graph_format is Format.OPENVINO else "CUDA"
    with pytest.raises(InputError, match=f"only the CPU takes a number of threads, and the device is {device}"):
        open_session(path, graph_format, device, threads=2)


def test_precision_is_what_was_asked_for_or_an_error(graph: tuple[Path, Format]) -> None:
    path, graph_format = graph
    supported = import_engine(graph_format).devices()[0].precisions
    assert open_session(path, graph_format).precision == supported[0]
    for precision in (ExecutionPrecision.F32, ExecutionPrecision.BF16, ExecutionPrecision.F16):
        if precision in supported:
            assert open_session(path, graph_format, precision=precision).precision == precision
        else:
            with pytest.raises(UnsupportedPrecisionError, match=rf"{precision}.*ask for .*f32 or auto"):
                open_session(path, graph_format, precision=precision)


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "MULTI:CPU"])
def test_a_precision_that_no_device_has_is_told_whoever_chooses(tmp_path: Path, device: str) -> None:
    path = WRITERS[Format.OPENVINO][0](tmp_path / "graph", TILE)[0]
    with pytest.raises(UnsupportedPrecisionError, match=r"does not execute in tf32; ask for .*f32.* or auto"):
        open_session(path, Format.OPENVINO, device, precision=ExecutionPrecision.TF32)


def test_auto_has_what_one_of_its_devices_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_ad.runtime import openvino_session

    class Core:
        available_devices = ("CPU", "NPU")

    precisions = {"CPU": ("bf16", "f32"), "NPU": ("f16",)}
    monkeypatch.setattr(openvino_session, "core", Core)
    monkeypatch.setattr(openvino_session, "_supported_precisions", precisions.__getitem__)
    for precision in ("bf16", "f32", "f16"):
        openvino_session._check_precision((), ExecutionPrecision(precision))
    with pytest.raises(UnsupportedPrecisionError, match="AUTO does not execute in tf32; ask for bf16, f32, f16 or"):
        openvino_session._check_precision((), ExecutionPrecision.TF32)
    with pytest.raises(UnsupportedPrecisionError, match="NPU does not execute in f32; ask for f16 or auto"):
        openvino_session._check_precision(("CPU", "NPU"), F32)


def test_an_engine_that_runs_in_another_precision_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plugin takes an f16 hint on machines without it, and runs in something else."""
    from edge_ad.runtime import openvino_session

    path = WRITERS[Format.OPENVINO][0](tmp_path / "graph", TILE)[0]
    if "f16" in openvino_session.devices()[0].precisions:
        pytest.skip("this CPU executes f16")
    monkeypatch.setattr(openvino_session, "_check_precision", lambda parts, precision: None)
    with pytest.raises(UnsupportedPrecisionError, match=r"CPU executes graph.xml in b?f(16|32), not in the f16"):
        open_session(path, Format.OPENVINO, precision=ExecutionPrecision.F16)


def test_threads(graph: tuple[Path, Format], monkeypatch: pytest.MonkeyPatch) -> None:
    path, graph_format = graph
    seen: dict[str, Any] = {}
    if graph_format is Format.OPENVINO:
        compile_model = ov.Core.compile_model
        monkeypatch.setattr(
            ov.Core, "compile_model", lambda self, *args: seen.update(args[2]) or compile_model(self, *args)
        )
    else:
        ort = pytest.importorskip("onnxruntime")
        make_session = ort.InferenceSession

        def record(path: str, options: Any, **more: Any) -> Any:
            seen["INFERENCE_NUM_THREADS"] = options.intra_op_num_threads
            return make_session(path, options, **more)

        monkeypatch.setattr(ort, "InferenceSession", record)
    open_session(path, graph_format, threads=1)
    assert seen["INFERENCE_NUM_THREADS"] == 1
    if graph_format is Format.ONNX:  # which by itself would pin the threads of every session to the same cores
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
        open_session(path, graph_format)
        assert seen["INFERENCE_NUM_THREADS"] == 3
    for name in ("threads", "batch_size"):
        with pytest.raises(InputError, match=f"{name}: expected at least 1, but got 0"):
            open_session(path, graph_format, **{name: 0})


def test_cache_dir(graph: tuple[Path, Format], tmp_path: Path) -> None:
    path, graph_format = graph
    cache = tmp_path / "cache"
    if graph_format is Format.OPENVINO:
        open_session(path, graph_format, cache_dir=cache)
        assert list(cache.iterdir())
    else:
        with pytest.raises(InputError, match="ONNX Runtime keeps no compiled graphs"):
            open_session(path, graph_format, cache_dir=cache)


def test_a_cache_leaves_the_locale_as_it_was(tmp_path: Path) -> None:
    """OpenVINO changes the whole process's locale while it reads or writes its cache."""
    path, _ = WRITERS[Format.OPENVINO][0](tmp_path / "shared", TILE)
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        pytest.skip("no locale C.UTF-8 here")

    def open_and_close(batch_size: int) -> None:
        open_session(path, Format.OPENVINO, batch_size=batch_size, cache_dir=tmp_path / "cache").close()

    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(open_and_close, [1, 2, 3, 4] * 10))  # write it, then read it
        assert locale.setlocale(locale.LC_CTYPE) == "C.UTF-8"
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_a_changed_cache_changes_no_running_session(tmp_path: Path) -> None:
    path, _ = WRITERS[Format.OPENVINO][1](tmp_path / "head", TILE, *head_constants(LOCATION))
    feeds = {"features": np.ones((1, 1, *TILE), np.float32), "image": np.full((1, *TILE, 3), 9, np.uint8)}

    def score(session: Session) -> float:
        return float(session.fetch(session.run(feeds)["pred_score"])[0])

    sessions = [open_session(path, Format.OPENVINO, precision=F32, cache_dir=tmp_path / "cache") for _ in range(2)]
    expected = score(sessions[0])
    for blob in (tmp_path / "cache").iterdir():
        with blob.open("r+b") as file:
            file.write(b"\xff" * blob.stat().st_size)
    assert [score(session) for session in sessions] == [expected] * 2
    if (maps := Path("/proc/self/maps")).exists():
        assert str(tmp_path) not in maps.read_text(encoding="utf-8")


def test_graphs_that_cannot_be_read(tmp_path: Path) -> None:
    # The second content of each begins well: XML of another kind, an ONNX model without a graph.
    for graph_format, name, start in (
        (Format.OPENVINO, "bad.xml", b"<?xml version='1.0'?><nonsense/>"),
        (Format.ONNX, "bad.onnx", b"\x08\x09"),
    ):
        (tmp_path / name).write_text("nonsense")
        with pytest.raises(GraphFormatError, match=f"{name}: not an (OpenVINO IR|ONNX model)"):
            open_session(tmp_path / name, graph_format)
        (tmp_path / name).write_bytes(start)
        with pytest.raises(InferenceError, match=f"cannot load {name} on CPU"):
            open_session(tmp_path / name, graph_format)


def test_tensors_too_large_to_allocate_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ONNX Runtime's sessions, which allocate before the graph runs. The image is largest, three numbers a pixel."""
    from edge_ad.runtime import onnxruntime_session

    assert onnxruntime_session.ELEMENTS_MAX == 2**31
    path = WRITERS[Format.ONNX][0](tmp_path / "graph", TILE)[0]
    elements = BATCH * TILE[0] * TILE[1] * 3
    monkeypatch.setattr(onnxruntime_session, "ELEMENTS_MAX", elements)
    open_session(path, Format.ONNX, batch_size=BATCH).close()
    with pytest.raises(GraphFormatError, match=rf"image: .* has more than {elements} elements"):
        open_session(path, Format.ONNX, batch_size=BATCH + 1)


def test_a_silent_fall_back_to_the_cpu_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with CUDA on a machine without its libraries: onnxruntime warns, and makes a CPU session."""
    ort = pytest.importorskip("onnxruntime")
    path = WRITERS[Format.ONNX][0](tmp_path / "graph", TILE)[0]
    make_session = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers, **_: make_session(path, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceFallbackError, match="CUDA:1 was asked for, but ONNX Runtime fell back to CPUExecution"):
        open_session(path, Format.ONNX, "CUDA:1")


@pytest.mark.parametrize("graph_format", Format)
def test_a_missing_engine(graph_format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ENGINES[graph_format]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineMissingError, match=rf"need {package}.*pip install '\.\[{package}\]'"):
        import_engine(graph_format)
