from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from fake_session import fake_detector
from tiny_bundle import expected_score, tiny_manifest

from edge_ad.errors import InputError, SourceError
from edge_ad.imaging import Color, resize
from edge_ad.runtime import capture
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.faults import Fault, FaultPolicy, reopen_pause_s
from edge_ad.runtime.result import error_result

Write = Callable[..., Path]
SAMPLE = Path(__file__).parents[2] / "samples" / "opencv_loop.py"
FRAMES, SIZE = 7, (92, 116)


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("opencv_loop", SAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Grey frames; in frames 4 to 6 a red square."""
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, SIZE[::-1])
    for index in range(FRAMES):
        frame = np.full((*SIZE, 3), 128, np.uint8)
        if index >= 4:
            frame[60:76, 72:88] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


def _decoded(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_a_file_from_the_command_line(tiny_bundle: Write, video: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SAMPLE), str(tiny_bundle()), str(video), "--output", str(tmp_path / "out.avi")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame_id"] for line in lines] == list(range(FRAMES))
    assert {line["dropped"] for line in lines} == {0}
    manifest = tiny_manifest()
    digest = json.loads((tmp_path / "tiny.edgead" / "manifest.json").read_text())["digest"]
    for line, frame in zip(lines, _decoded(video), strict=True):
        raw = expected_score(resize(np.ascontiguousarray(frame[:, :, ::-1]), (46, 58)), manifest)
        assert line["raw_score"] == pytest.approx(raw, abs=4e-2)
        assert line["raw_threshold"] == manifest.normalisation.score.threshold
        assert line["manifest_digest"] == digest[:16]
        assert line["pred_score"] == pytest.approx(np.clip(0.5 * (raw - 0.2), 0, 1), abs=2e-2)  # extractor in bf16
    (region, *_) = lines[6]["regions"]
    assert abs(region["x"] - 72) <= 4
    assert abs(region["y"] - 60) <= 4
    assert not lines[0]["regions"]
    annotated = _decoded(tmp_path / "out.avi")
    assert len(annotated) == FRAMES
    assert annotated[0].shape == (*SIZE, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"line.avi", "out.avi", "tiny.edgead"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.avi"], 2, "gone.avi gives no frame; check the path"),
        (["{video}", "--device", "cuda"], 4, "'CUDA' is not one that OpenVINO finds here"),
        (["{video}", "--output", "no/such/folder/out.avi"], 1, "cannot write no/such/folder/out.avi"),
    ],
)
def test_errors_are_one_line(
    sample: ModuleType,
    tiny_bundle: Write,
    video: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert sample.main([str(tiny_bundle()), *(text.format(video=video) for text in arguments)]) == code
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_what_is_live(sample: ModuleType, tmp_path: Path) -> None:
    video = tmp_path / "12.avi"
    video.touch()
    pipeline = f"rtspsrc location=rtsp://10.0.0.7/a latency=0 ! {'queue ! ' * 600}appsink"  # longer than names go
    for source in ("0", "rtsp://10.0.0.7/a", "/dev/video0", "videotestsrc ! appsink", pipeline):
        assert sample.is_live(source)
    for source in (str(video), f"file://{video}"):
        assert not sample.is_live(source)


def test_an_opencv_without_windows(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def imshow(name: str, frame: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", imshow)
    with pytest.raises(InputError, match=r"--show: this OpenCV has no windows; install opencv-python"):
        sample.is_quit(np.zeros((3, 3, 3), np.uint8))


class _FlakyCamera:
    """Gives two frames, fails at two reconnections, gives one more, and fails until the test has seen enough."""

    scripts: list[int]
    released = 0

    def __init__(self, source: Any) -> None:
        assert source == 3
        self.left = _FlakyCamera.scripts.pop(0) if _FlakyCamera.scripts else 0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, np.zeros((2, 3, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        _FlakyCamera.released += 1


def test_a_lost_camera_is_opened_again(
    sample: ModuleType, tiny_bundle: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def pause_s(attempt: int, policy: FaultPolicy) -> float:
        pauses.append(reopen_pause_s(attempt, policy))
        if len(pauses) == 6:
            raise KeyboardInterrupt
        return 0.001

    _FlakyCamera.scripts, _FlakyCamera.released = [2, 0, 0, 1], 0
    monkeypatch.setattr(cv2, "VideoCapture", _FlakyCamera)
    monkeypatch.setattr(capture, "reopen_pause_s", pause_s)
    assert sample.main([str(tiny_bundle()), "3"]) == 130
    assert pauses == [1, 2, 4, 1, 2, 4]
    assert _FlakyCamera.released == 6
    assert [json.loads(line)["frame_id"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2]


def test_a_camera_that_never_was_there(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _FlakyCamera.scripts = [0]
    monkeypatch.setattr(cv2, "VideoCapture", _FlakyCamera)
    with pytest.raises(SourceError, match="3 gives no frame"):
        next(sample.frames("3"))


def test_the_standby_takes_over(
    sample: ModuleType,
    tiny_bundle: Write,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        opened.append((load_bundle(*arguments, **options), arguments[1], options))
        return opened[-1][0]

    load_bundle = sample.edge_ad.load
    monkeypatch.setattr(sample.edge_ad, "load", load)
    stats = Detector.stats

    def lose_the_device(detector: Detector) -> Any:
        opened[0][0].sessions[2].close()
        return stats(detector)

    monkeypatch.setattr(Detector, "stats", lose_the_device)  # called after the first result
    assert sample.main([str(tiny_bundle()), str(video), "--standby", "AUTO"]) == 0
    assert [(device, options) for _, device, options in opened] == [
        ("CPU", {"self_test": True}),
        ("AUTO", {"self_test": True}),
    ]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame_id"] for line in lines] == list(range(FRAMES))
    assert (lines[0]["fault"], lines[-1]["fault"]) == (None, "inference")
    # Inference runs ahead of the reader: by how many frames when the device goes is chance
    assert len([line for line in caplog.messages if re.match(r"inference \(fall_back\): frame [1-4]: ", line)]) == 1


def test_a_frame_without_a_verdict(sample: ModuleType, tiny_bundle: Write) -> None:
    result = error_result(
        np.zeros((2, 3, 3), np.uint8),
        color=Color.BGR,
        bits=None,
        map_size=(5, 7),
        tiles=4,
        timings_ms={},
        frame_id=8,
        device="CPU",
        fault=Fault.NON_FINITE,
        error="tile r00_c00: the model gave NaN",
    )
    manifest = tiny_manifest()
    line = json.dumps(sample.as_json(result, fake_detector(manifest)), allow_nan=False)
    assert json.loads(line) == {
        "frame_id": 8,
        "verdict": "error",
        "pred_label": True,
        "raw_threshold": manifest.normalisation.score.threshold,
        "manifest_digest": None,
        "dropped": 0,
        "device": "CPU",
        "fault": "non_finite",
        "error": "tile r00_c00: the model gave NaN",
    }


def test_regions_are_in_pixels_of_the_frame_and_none_vanishes(sample: ModuleType) -> None:
    """A frame of half the bundle's size, and an anomaly of one pixel of the map."""
    manifest = tiny_manifest()
    detector = fake_detector(manifest)
    result = detector(np.zeros((23, 29, 3), np.uint8), color="bgr")
    mask = np.zeros(manifest.setup.image_size, bool)
    mask[6, 10] = True
    (region,) = sample.as_json(replace(result, pred_mask=mask), detector)["regions"]
    assert {name: region[name] for name in ("x", "y", "width", "height")} == {"x": 5, "y": 3, "width": 1, "height": 1}


def test_every_sample_has_a_test() -> None:
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {path.stem for path in SAMPLE.parent.glob("*.py")} <= tested


def test_every_sample_is_described() -> None:
    described = (SAMPLE.parent / "README.md").read_text()
    for path in SAMPLE.parent.glob("*.py"):
        assert f"**`{path.name}`**" in described
        assert f"python samples/{path.name}" in path.read_text()
