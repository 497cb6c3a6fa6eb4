"""Inspect what a camera, a stream or a video file shows, with OpenCV and edge-ad in one loop.

    pip install '.[openvino]'                                                     # in a checkout
    python samples/opencv_loop.py bolt.edgead 0 --device GPU --standby CPU        # camera 0
    python samples/opencv_loop.py bolt.edgead rtsp://10.0.0.7/line --show         # network camera; q or Esc quits
    python samples/opencv_loop.py bolt.edgead line.mp4 --output inspected.avi     # every frame of a file

One JSON object per frame goes to stdout. All but files is live: where frames come faster than verdicts, the oldest
ones waiting are dropped, and a lost connection is opened anew, after 1 s, 2 s, 4 s ... 30 s. A file loses no frame and
ends the loop. The bundle proves itself at the start; a frame for which the model gives NaN has the verdict "error",
never "normal"; where the device fails, that of --standby takes over, and every line says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

import edge_ad
from edge_ad import Verdict
from edge_ad.errors import EdgeAdError, InputError, OutputWriteError, SourceError
from edge_ad.runtime import overlay
from edge_ad.runtime.faults import FaultPolicy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", help="camera index, URL, or path of a video file")
    parser.add_argument("--device", type=str.upper, default="CPU", help="CPU, GPU, NPU, CUDA, ... (default: CPU)")
    parser.add_argument(
        "--standby", type=str.upper, help="a second device, loaded too, that takes over where the first one fails"
    )
    parser.add_argument("--output", type=Path, help="write an annotated video: .avi or .mp4")
    parser.add_argument("--show", action="store_true", help="show the annotated frames in a window")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")  # faults that the policy answers, to stderr
    try:
        inspect(options.bundle, options.source, options.device, options.standby, options.output, options.show)
    except EdgeAdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def inspect(bundle: Path, source: str, device: str, standby: str | None, output: Path | None, show: bool) -> None:
    """Print one JSON line per frame of ``source``; write and show annotated frames where asked for."""
    with ExitStack() as stack:
        detector = stack.enter_context(edge_ad.load(bundle, device, self_test=True))
        second = stack.enter_context(edge_ad.load(bundle, standby, self_test=True)) if standby else None
        writer: cv2.VideoWriter | None = None
        results = detector.stream(
            lambda: frames(source),
            color="bgr",
            drop="oldest" if is_live(source) else "never",
            policy=FaultPolicy(
                source="reopen" if is_live(source) else "raise",
                inference="fall_back" if second else "raise",
                non_finite="report",
                stalled="skip",
                stall_s=10.0,
            ),
            standby=second,
        )
        stack.callback(results.close)  # stops the threads before the detectors go
        for result in results:
            print(json.dumps(as_json(result, detector)), flush=True)
            if output is None and not show:
                continue
            annotated = cv2.cvtColor(overlay.draw(result, roi=detector.roi), cv2.COLOR_RGB2BGR)
            if output is not None:
                if writer is None:
                    writer = open_writer(output, annotated)
                    stack.callback(writer.release)
                writer.write(annotated)
            if show and is_quit(annotated):
                break


def is_quit(annotated: NDArray[Any]) -> bool:
    """Show a frame; True once q or Esc is pressed. Raises `InputError` where OpenCV has no windows."""
    try:
        cv2.imshow("edge-ad", annotated)
        return cv2.waitKey(1) in (ord("q"), 27)
    except cv2.error as error:
        raise InputError("--show: this OpenCV has no windows; install opencv-python in place of -headless") from error


def is_live(source: str) -> bool:
    """Files are not, however they are named; cameras, URLs, device files and pipelines are."""
    # Path.is_file raises where a pipeline is longer than names go
    return not os.path.isfile(source.removeprefix("file://"))  # noqa: PTH113


def frames(source: str) -> Iterator[NDArray[Any]]:
    """BGR frames of ``source`` until it ends or is lost.

    Raises:
        SourceError: it gave no frame at all.
    """
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        ok, frame = capture.read()
        if not ok:
            raise SourceError(f"{source} gives no frame; check the path, the index or the address")
        while ok:
            yield frame
            ok, frame = capture.read()
    finally:
        capture.release()


def as_json(result: edge_ad.Result, detector: edge_ad.Detector) -> dict[str, Any]:
    """What a line controller wants to know of one frame. Regions are in pixels of the frame."""
    line = {
        "frame_id": result.frame_id,
        "verdict": result.verdict,
        "pred_label": result.pred_label,  # True of an error too: what could not be inspected is not good
        "raw_threshold": detector.manifest.normalisation.score.threshold,
        "manifest_digest": detector.manifest_digest,
        "dropped": detector.stats().dropped,
        "device": result.device,
        "fault": result.fault,
    }
    if result.verdict is Verdict.ERROR:
        return line | {"error": result.error}
    return line | {
        "pred_score": round(result.pred_score, 4),
        "raw_score": result.raw_score,
        "regions": [
            {
                "x": region.x,
                "y": region.y,
                "width": region.width,
                "height": region.height,
                "max_score": round(region.max_score, 4),
            }
            for region in result.regions_at()
        ],
        "latency_ms": round(result.timings_ms["total"], 3),
    }


def open_writer(output: Path, frame: NDArray[Any], frames_per_s: float = 25.0) -> cv2.VideoWriter:
    """A writer for frames of the size of ``frame``. Raises `OutputWriteError`."""
    codec = "mp4v" if output.suffix == ".mp4" else "MJPG"
    height, width = frame.shape[:2]
    writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*codec), frames_per_s, (width, height))
    if not writer.isOpened():
        raise OutputWriteError(f"cannot write {output}; use a .avi or .mp4 path in a folder that exists")
    return writer


if __name__ == "__main__":
    sys.exit(main())
