"""Image files in, overlays, masks and one JSON line per image out.

::

    OUTPUT/results.jsonl        a line per image, flushed as soon as it is done
    OUTPUT/overlays/NAME.png    what was found, drawn on the image
    OUTPUT/masks/NAME.png       255 where it is anomalous, at the image's own size
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_ad.errors import (
    EmptyDataError,
    NonFiniteOutputError,
    OutputExistsError,
    PixelFormatError,
    SourceError,
    UnreadableImageError,
)
from edge_ad.imaging import PixelFormat, image_files, read_image, resize_mask, write_png
from edge_ad.records import to_plain
from edge_ad.runtime import overlay
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.result import Result, Verdict

RESULTS, OVERLAYS, MASKS = "results.jsonl", "overlays", "masks"


@dataclass(frozen=True)
class Prediction:
    """One image file and what came of it: a result, or the error that kept it from being inspected."""

    name: str
    path: Path
    result: Result | None
    error: UnreadableImageError | PixelFormatError | NonFiniteOutputError | None = None


def named_images(sources: Sequence[Path]) -> list[tuple[str, Path]]:
    """Every image of ``sources`` with a name of its own for its outputs: its stem, numbered where that is taken.

    Raises:
        SourceError: a source is not there.
        EmptyDataError: a folder holds no image.
    """
    taken: set[str] = set()
    named = []
    for path in (path for source in sources for path in _images_of(source)):
        name, number = path.stem, 2
        while name.casefold() in taken:  # folded: some file systems do not tell a.png from A.png
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.casefold())
        named.append((name, path))
    return named


def prepare_output(output: Path, *, overwrite: bool = False) -> None:
    """Make ``output`` a folder without results. Only what an earlier call wrote is ever removed.

    Raises:
        OutputExistsError: it is a file, holds something else, or holds earlier results and ``overwrite`` is False.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} exists and is not a folder; choose another -o")
    if output.exists() and any(output.iterdir()):
        if not (output / RESULTS).exists():
            raise OutputExistsError(f"{output} is not empty and holds no earlier results; choose another -o")
        if not overwrite:
            raise OutputExistsError(f"{output} holds earlier results; choose another -o, or pass --overwrite")
        for folder in (output / OVERLAYS, output / MASKS):
            shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)


def predict_files(
    detector: Detector,
    images: Sequence[tuple[str, Path]],
    output: Path,
    *,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 - frozen
    tiles: bool = False,
) -> Iterator[Prediction]:
    """Inspect image files one by one, and write what was found below ``output``.

    Args:
        detector: what inspects.
        images: names and files, see `named_images`.
        output: an empty folder, see `prepare_output`.
        pixel_format: how files become RGB.
        tiles: draw the tiles and their raw scores too.

    Raises:
        OutputWriteError, InferenceError: the rest is not done. A file that cannot be read, or whose map holds NaN or
            infinity, gets a line with its error, and does not stop the others.

    One image and its result are held at a time; of open files, results.jsonl and the one that is read or written.
    """
    with (output / RESULTS).open("w", encoding="utf-8") as results:
        for name, path in images:
            record: dict[str, Any] = {"source": str(path), "time_utc": datetime.now(UTC).isoformat()}
            try:
                prediction = Prediction(name, path, _predict_file(detector, name, path, output, pixel_format, tiles))
            except (UnreadableImageError, PixelFormatError, NonFiniteOutputError) as error:
                prediction = Prediction(name, path, None, error)
            result = prediction.result
            outcome = _record(result, name) if result else {"verdict": Verdict.ERROR, "error": str(prediction.error)}
            results.write(json.dumps(record | outcome, allow_nan=False) + "\n")
            results.flush()
            yield prediction


def _predict_file(
    detector: Detector, name: str, path: Path, output: Path, pixel_format: PixelFormat, tiles: bool
) -> Result:
    image = read_image(path, pixel_format)
    result = detector(image, color="rgb", frame_id=name)
    write_png(output / OVERLAYS / f"{name}.png", overlay.draw(result, detector.grid if tiles else None))
    mask = resize_mask(result.pred_mask, result.original_size)
    write_png(output / MASKS / f"{name}.png", mask.astype("uint8") * 255)
    return result


def _record(result: Result, name: str) -> dict[str, Any]:
    """A result as a line of results.jsonl. Regions are in pixels of the image, as the mask is."""
    return {
        "verdict": result.verdict,
        "pred_score": result.pred_score,
        "pred_label": result.pred_label,
        "raw_score": result.raw_score,
        "tile_scores": result.tile_scores.tolist(),
        "regions": to_plain(result.regions_at()),
        "map_size": list(result.anomaly_map.shape),
        "image_size": list(result.original_size),
        "device": result.device,
        "timings_ms": {stage: round(time_ms, 3) for stage, time_ms in result.timings_ms.items()},
        "overlay": f"{OVERLAYS}/{name}.png",
        "mask": f"{MASKS}/{name}.png",
    }


def _images_of(source: Path) -> Iterator[Path]:
    if source.is_dir():
        images = image_files(source)
        if not images:
            raise EmptyDataError(f"{source} holds no image; folders inside it are not searched")
        yield from images
    elif source.exists():
        yield source
    else:
        raise SourceError(f"{source} not found; expected an image or a folder of images")
