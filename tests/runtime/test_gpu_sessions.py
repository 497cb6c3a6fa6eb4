"""ONNX Runtime on NVIDIA GPUs: what can be checked of it without one, and the rest where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_bundle import WRITERS, expected_tile, head_constants

from edge_ad.bundle.graph_files import GraphFiles
from edge_ad.bundle.manifest import Format
from edge_ad.errors import DeviceFallbackError, DeviceNotFoundError, InferenceError, UnsupportedPrecisionError
from edge_ad.exporters import onnx_graph
from edge_ad.runtime import onnxruntime_session
from edge_ad.runtime.onnxruntime_session import OnnxruntimeSession, _DeviceInputs, _engine_cache, _settings
from edge_ad.runtime.session import ExecutionPrecision, Session
from edge_ad.runtime.sessions import open_session
from edge_ad.tiling import Location

TILE, BATCH, LOCATION = (23, 29), 3, Location(1, 2)
F32, TF32, F16 = ExecutionPrecision.F32, ExecutionPrecision.TF32, ExecutionPrecision.F16
write_shared, write_head = WRITERS[Format.ONNX]
Open = Callable[[Path], Session]


def _with_device_inputs(path: Path) -> Session:
    """A session on the CPU that is fed as those on a GPU are."""
    session = open_session(path, Format.ONNX, batch_size=BATCH)
    assert isinstance(session, OnnxruntimeSession)
    session._inputs = _DeviceInputs(session._binding, session.inputs, "cpu", 0)
    return session


def _on_gpu(path: Path) -> Session:
    try:
        return open_session(path, Format.ONNX, "CUDA", precision=F32, batch_size=BATCH)
    except (DeviceNotFoundError, DeviceFallbackError) as error:
        pytest.skip(f"no CUDA for ONNX Runtime here: {error}")


@pytest.fixture(params=[_with_device_inputs, _on_gpu], ids=["cpu", "cuda"])
def opened(request: pytest.FixtureRequest) -> Open:
    return request.param


def _images(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (BATCH, *TILE, 3), dtype=np.uint8)


def _check(session: Session, feeds: dict[str, Any], images: Any) -> None:
    outputs = session.run(feeds)
    maps, scores = session.fetch(outputs["anomaly_map"]), session.fetch(outputs["pred_score"])
    for image, anomaly_map, score in zip(images, maps[:, 0], scores, strict=True):
        expected_map, expected_score = expected_tile(image, LOCATION)
        np.testing.assert_allclose(anomaly_map, expected_map, atol=1e-5)
        assert score == pytest.approx(expected_score, abs=1e-5)


def test_every_image_counts_whatever_came_before(opened: Open, tmp_path: Path) -> None:
    """Buffers stay and captured graphs are repeated: neither may keep an earlier image."""
    shared = opened(write_shared(tmp_path / "shared", TILE)[0])
    head = opened(write_head(tmp_path / "head", TILE, *head_constants(LOCATION))[0])
    for seed in range(4):
        images = _images(seed)
        _check(head, {"image": images, **shared.run({"image": images})}, images)


def test_features_of_two_extractors_in_turn(opened: Open, tmp_path: Path) -> None:
    """A captured graph repeats addresses: features that lie elsewhere are not those."""
    path = write_shared(tmp_path / "shared", TILE)[0]
    one, other = opened(path), opened(path)
    head = opened(write_head(tmp_path / "head", TILE, *head_constants(LOCATION))[0])
    first, second = _images(1), _images(2)
    for _ in range(3):
        _check(head, {"image": first, **one.run({"image": first})}, first)
        _check(head, {"image": second, **other.run({"image": second})}, second)
        features = one.fetch(one.run({"image": first})["features"]).copy()
        _check(head, {"image": first, "features": features}, first)


@pytest.mark.parametrize(
    "image",
    [np.zeros((BATCH, *TILE, 3), np.float32), np.zeros((BATCH + 1, *TILE, 3), np.uint8), np.zeros(3, np.uint8)],
    ids=["dtype", "batch", "rank"],
)
def test_wrong_inputs_are_errors(opened: Open, tmp_path: Path, image: Any) -> None:
    shared = opened(write_shared(tmp_path / "shared", TILE)[0])
    with pytest.raises(InferenceError, match="image: expected uint8"):
        shared.run({"image": image})


@pytest.mark.parametrize(
    ("kind", "precision", "captured", "settings"),
    [
        ("CPU", F32, False, {}),
        ("CUDA", F32, True, {"device_id": "2", "use_tf32": "0", "enable_cuda_graph": "1"}),
        ("CUDA", ExecutionPrecision.AUTO, False, {"device_id": "2", "use_tf32": "1", "enable_cuda_graph": "0"}),
        ("TENSORRT", F16, False, {"device_id": "2", "trt_fp16_enable": "1"}),
    ],
)
def test_settings_as_the_engine_documents_them(
    kind: str, precision: ExecutionPrecision, captured: bool, settings: dict[str, str]
) -> None:
    assert _settings(kind, "2", precision, captured=captured) == settings


def test_tensorrt_engines_of_unlike_graphs_and_batches_are_kept_apart() -> None:
    settings = [
        _engine_cache(Path("cache"), GraphFiles("head.onnx", model), batch)
        for model, batch in ((b"one", 1), (b"other", 1), (b"one", 2))
    ]
    assert len({each["trt_engine_cache_prefix"] for each in settings}) == 3
    assert {(each["trt_engine_cache_enable"], each["trt_engine_cache_path"]) for each in settings} == {("1", "cache")}
    assert settings[0] == _engine_cache(Path("cache"), GraphFiles("elsewhere.onnx", b"one"), 1)


def test_a_graph_that_cannot_be_captured_runs_uncaptured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With some operations on the CPU, the engine refuses to capture."""
    ort = onnxruntime_session.ort
    tried: list[dict[str, str]] = []
    make_session = ort.InferenceSession

    class Recorded:
        def __new__(cls, model: bytes, options: Any, providers: Any, **_: Any) -> Any:
            tried.append(providers[0][1])
            if providers[0][1]["enable_cuda_graph"] == "1":
                raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
            return make_session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(DeviceFallbackError, match="fell back to CPUExecutionProvider"):
        open_session(write_shared(tmp_path / "shared", TILE)[0], Format.ONNX, "CUDA")
    assert [settings["enable_cuda_graph"] for settings in tried] == ["1", "0"]


# Its text as in both providers' option parsers, and CUDA's own for error 101
@pytest.mark.parametrize(
    "told",
    [
        "Invalid device ID: 7, must be between 0 (inclusive) and 1 (exclusive).",
        "CUDA failure 101: invalid device ordinal ; GPU=7 ; expr=cudaSetDevice(info_.device_id);",
    ],
)
@pytest.mark.parametrize("device", ["CUDA:7", "TENSORRT:7"])
def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, told: str) -> None:
    ort = onnxruntime_session.ort

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(told)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    path = write_shared(tmp_path / "shared", TILE)[0]
    found = f"'{device}' is not one .* found: CPU, CUDA, TENSORRT; there is none of this number$"
    with pytest.raises(DeviceNotFoundError, match=found):
        open_session(path, Format.ONNX, device)
    for number in ("x", "", "-1", "0x1"):
        name = f"{device.partition(':')[0]}:{number}"
        with pytest.raises(DeviceNotFoundError, match=f"'{name}': expected a number after the colon, .*; found: CPU,"):
            open_session(path, Format.ONNX, name)


class _Halved:
    """What `_executed` asks of a session whose graph computes in half precision."""

    custom_metadata_map = {onnxruntime_session.ARITHMETIC: "f16"}  # noqa: RUF012 - as the engine's

    def get_modelmeta(self) -> _Halved:
        return self


@pytest.mark.parametrize(
    ("device", "asked", "runs_in"),
    [
        ("CUDA:1", ExecutionPrecision.AUTO, F16),
        ("CUDA", F16, F16),
        ("CUDA", F32, None),
        ("CPU", ExecutionPrecision.AUTO, F32),
        ("CPU", F32, F32),
        ("CPU", F16, None),
    ],
)
def test_what_a_halved_graph_is_executed_in(
    device: str, asked: ExecutionPrecision, runs_in: ExecutionPrecision | None
) -> None:
    graph = onnxruntime_session.GraphFiles("graph.onnx", b"")
    if runs_in:
        assert onnxruntime_session._executed(_Halved(), graph, device, asked) == runs_in
    else:
        with pytest.raises(UnsupportedPrecisionError, match=rf"graph.onnx on {device} in f\d+, not in {asked}"):
            onnxruntime_session._executed(_Halved(), graph, device, asked)


def test_a_halved_graph_says_so_and_gives_nearly_the_same(tmp_path: Path) -> None:
    path = write_head(tmp_path / "head", TILE, *head_constants(LOCATION))[0]
    halved = onnx_graph.halve_arithmetic(onnx.load(path))
    assert {entry.key: entry.value for entry in halved.metadata_props}[onnxruntime_session.ARITHMETIC] == "f16"
    onnx.save(halved, tmp_path / "halved.onnx")
    whole, half = (open_session(each, Format.ONNX, batch_size=BATCH) for each in (path, tmp_path / "halved.onnx"))
    assert (half.inputs, half.outputs) == (whole.inputs, whole.outputs)
    shared = open_session(write_shared(tmp_path / "shared", TILE)[0], Format.ONNX, batch_size=BATCH)
    feeds = {"image": _images(0), "features": shared.fetch(shared.run({"image": _images(0)})["features"])}
    exact, rounded = (session.fetch(session.run(feeds)["anomaly_map"]) for session in (whole, half))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=4e-3 * np.abs(exact).max())
