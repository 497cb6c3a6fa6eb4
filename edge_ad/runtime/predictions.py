"""Image files in, overlays, masks and one JSON line per image out.

::

    OUTPUT/results.jsonl        a line per image, flushed as soon as it is done
    OUTPUT/overlays/NAME.png    what was found, drawn on the image
    OUTPUT/masks/NAME.png       255 where it is anomalous, at the image's own size
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ad import atomic
from edge_ad.errors import (
    EmptyDataError,
    NonFiniteOutputError,
    OutputExistsError,
    PixelFormatError,
    SourceError,
    UnreadableImageError,
)
from edge_ad.imaging import PixelFormat, cover_mask, encode_png, image_files, read_image
from edge_ad.records import to_plain
from edge_ad.runtime import overlay
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.result import Result, Verdict

RESULTS, OVERLAYS, MASKS = "results.jsonl", "overlays", "masks"
NAME_MAX_BYTES = 240  # of the 255 of most file systems: a number and a suffix come on top


@dataclass(frozen=True)
class Prediction:
    """One image file and what came of it: a result, or the error that kept it from being inspected."""

    name: str
    path: Path
    result: Result | None
    error: UnreadableImageError | PixelFormatError | NonFiniteOutputError | None = None


def named_images(sources: Sequence[Path]) -> list[tuple[str, Path]]:
    """Every image of ``sources`` with a name of its own for its outputs: its stem, numbered where that is taken.

    A stem of more than `NAME_MAX_BYTES` is cut off there.

    Raises:
        SourceError: a source is not there.
        EmptyDataError: a folder holds no image.
    """
    taken: set[str] = set()
    named = []
    for path in (path for source in sources for path in _images_of(source)):
        stem = path.stem
        while len(os.fsencode(stem)) > NAME_MAX_BYTES:
            stem = stem[:-1]
        name, number = stem, 2
        while name.casefold() in taken:  # folded: some file systems do not tell a.png from A.png
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        named.append((name, path))
    return named


def prepare_output(output: Path, images: Iterable[Path] = (), *, overwrite: bool = False) -> None:
    """Make ``output`` a folder without results. Only what an earlier call wrote is ever removed.

    Args:
        output: the folder.
        images: the files that will be inspected.
        overwrite: remove earlier results: the overlays and masks that results.jsonl names.

    Raises:
        OutputExistsError: it is a file, holds something else, or holds earlier results and ``overwrite`` is False; or
            one of ``images`` lies among these.
        OutputWriteError: it cannot be made or emptied.
    """
    with atomic.writing(output):
        if output.exists() and not output.is_dir():
            raise OutputExistsError(f"{output} exists and is not a folder; choose another -o")
        if output.exists() and any(output.iterdir()):
            if not (output / RESULTS).is_file():
                raise OutputExistsError(f"{output} is not empty and holds no earlier results; choose another -o")
            if not overwrite:
                raise OutputExistsError(f"{output} holds earlier results; choose another -o, or pass --overwrite")
            folders = (output / OVERLAYS, output / MASKS)
            _check_apart(images, folders)
            for picture in _earlier_pictures(output):
                picture.unlink(missing_ok=True)
            for folder in folders:
                atomic.remove_leftovers(folder)
                with suppress(OSError):  # not there, or something else is in it
                    folder.rmdir()
        output.mkdir(parents=True, exist_ok=True)


def predict_files(
    detector: Detector,
    images: Sequence[tuple[str, Path]],
    output: Path,
    *,
    pixel_format: PixelFormat = PixelFormat(),  # noqa: B008 - frozen
    tiles: bool = False,
    pictures: bool = True,
) -> Iterator[Prediction]:
    """Inspect image files one by one, and write what was found below ``output``.

    Args:
        detector: what inspects.
        images: names and files, see `named_images`.
        output: an empty folder, see `prepare_output`.
        pixel_format: how files become RGB.
        tiles: draw the tiles and their raw scores too.
        pictures: write overlays and masks.

    Raises:
        OutputWriteError, InferenceError: the rest is not done. A file that cannot be read, or whose map holds NaN or
            infinity, gets a line with its error, and does not stop the others.

    One image and its result are held at a time, and one file is open.
    """
    _write_results(output, "w", "")
    judge = {
        "manifest_digest": detector.manifest_digest,
        "raw_threshold": detector.manifest.normalisation.score.threshold,
    }
    for name, path in images:
        record: dict[str, Any] = {"source": str(path), "time_utc": datetime.now(UTC).isoformat(), **judge}
        try:
            image = read_image(path, pixel_format)
            result = _inspect(detector, image, name, path)
        except (UnreadableImageError, PixelFormatError, NonFiniteOutputError) as error:
            # Whoever sorts by the label alone must not let pass what was not inspected
            record |= {"verdict": Verdict.ERROR, "pred_label": True, "error": str(error)}
            prediction = Prediction(name, path, None, error)
        else:
            record |= _record(result)
            if pictures:
                drawn = overlay.draw(result, detector.grid if tiles else None, detector.roi)
                record |= _write_pictures(output, name, result, drawn)
            prediction = Prediction(name, path, result)
        _write_results(output, "a", json.dumps(record, allow_nan=False) + "\n")
        yield prediction


def _inspect(detector: Detector, image: NDArray[np.uint8], name: str, path: Path) -> Result:
    try:
        return detector(image, color="rgb", frame_id=name)
    except NonFiniteOutputError as error:
        raise NonFiniteOutputError(f"{path}: {error}") from error


def _write_pictures(output: Path, name: str, result: Result, drawn: NDArray[np.uint8]) -> dict[str, str]:
    """Write overlay and mask; where they lie below ``output``. They can be made again: the disk is not waited for."""
    mask = cover_mask(result.pred_mask, result.original_size).astype(np.uint8) * 255
    written = {"overlay": f"{OVERLAYS}/{name}.png", "mask": f"{MASKS}/{name}.png"}
    for relative, picture in zip(written.values(), (drawn, mask), strict=True):
        atomic.write_bytes(output / relative, encode_png(picture), durable=False)
    return written


def _write_results(output: Path, mode: str, text: str) -> None:
    path = output / RESULTS
    with atomic.writing(path), path.open(mode, encoding="utf-8") as results:
        results.write(text)


def _record(result: Result) -> dict[str, Any]:
    """A result as a line of results.jsonl. Regions are in pixels of the image, as the mask is."""
    return {
        "verdict": result.verdict,
        "pred_score": result.pred_score,
        "pred_label": result.pred_label,
        "raw_score": result.raw_score,
        "tile_scores": [None if math.isnan(score) else score for score in result.tile_scores.tolist()],
        "regions": to_plain(result.regions_at()),
        "map_size": list(result.anomaly_map.shape),
        "image_size": list(result.original_size),
        "device": result.device,
        "timings_ms": {stage: round(time_ms, 3) for stage, time_ms in result.timings_ms.items()},
    }


def _check_apart(images: Iterable[Path], folders: Iterable[Path]) -> None:
    """See that no image lies in one of ``folders``, itself or what it is a link to. Raises `OutputExistsError`."""
    emptied = {folder.resolve() for folder in folders}
    for path in images:
        if not emptied.isdisjoint((path.parent.resolve(), path.resolve().parent)):
            raise OutputExistsError(f"{path} lies among the earlier results that are to be replaced; choose another -o")


def _earlier_pictures(output: Path) -> Iterator[Path]:
    """The overlays and masks that ``output``'s results.jsonl names, by their names alone: no others are there."""
    with (output / RESULTS).open(encoding="utf-8", errors="replace") as results:
        for line in results:
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a killed call may be half of one
                continue
            for key, folder in (("overlay", OVERLAYS), ("mask", MASKS)):
                named = record.get(key) if isinstance(record, dict) else None
                if isinstance(named, str) and (picture := output / folder / PurePosixPath(named).name).is_file():
                    yield picture


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
