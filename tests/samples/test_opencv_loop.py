from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_bundle import expected_score, tiny_manifest

from edge_ad.errors import SourceError
from edge_ad.imaging import resize

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
    for line, frame in zip(lines, _decoded(video), strict=True):
        raw = expected_score(resize(np.ascontiguousarray(frame[:, :, ::-1]), (46, 58)), manifest)
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
        (["{video}", "--device", "CUDA"], 4, "'CUDA' is not one that OpenVINO finds here"),
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


def test_what_is_live(sample: ModuleType) -> None:
    assert [sample.is_live(source) for source in ("0", "rtsp://10.0.0.7/a", "line.avi", "12.avi")] == [
        True,
        True,
        False,
        False,
    ]


class _FlakyCamera:
    """Gives two frames, fails at three reconnections, gives one frame, and then fails for ever."""

    scripts: list[int]

    def __init__(self, source: Any) -> None:
        assert source == 3
        self.left = _FlakyCamera.scripts.pop(0)
        self.released = False

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, np.zeros((2, 3, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_a_lost_camera_is_opened_again(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    _FlakyCamera.scripts = [2, 0, 0, 0, 1, *[0] * 7]
    monkeypatch.setattr(cv2, "VideoCapture", _FlakyCamera)
    monkeypatch.setattr(sample.time, "sleep", pauses.append)
    with pytest.raises(IndexError):  # the script's end
        for _ in sample.frames("3"):
            pass
    assert pauses == [1, 2, 4, 8, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_camera_that_never_was_there(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _FlakyCamera.scripts = [0]
    monkeypatch.setattr(cv2, "VideoCapture", _FlakyCamera)
    with pytest.raises(SourceError, match="3 gives no frame"):
        next(sample.frames("3"))


def test_every_sample_has_a_test() -> None:
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {path.stem for path in SAMPLE.parent.glob("*.py")} <= tested


def test_every_sample_is_described() -> None:
    described = (SAMPLE.parent / "README.md").read_text()
    for path in SAMPLE.parent.glob("*.py"):
        assert f"**`{path.name}`**" in described
        assert f"python samples/{path.name}" in path.read_text()
