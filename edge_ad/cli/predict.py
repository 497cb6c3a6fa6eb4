"""``edge-ad predict``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.cli.options import choice, device_option, precision_option
from edge_ad.errors import (
    EdgeAdError,
    EmptyDataError,
    GateError,
    OutputExistsError,
    PixelFormatError,
    SourceError,
    UnreadableImageError,
)
from edge_ad.imaging import PixelFormat, image_files, read_image, resize_mask, write_png
from edge_ad.records import to_plain
from edge_ad.runtime import overlay
from edge_ad.runtime.detector import Detector, load
from edge_ad.runtime.result import Result

RESULTS, OVERLAYS, MASKS = "results.jsonl", "overlays", "masks"


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@device_option
@precision_option
@click.option("--score-merge", type=choice(ScoreMerge), help="Replaces the bundle's own.")
@click.option("--bits", type=click.IntRange(8, 16), help="Significant bits of 16-bit files.  [default: 16]")
@click.option("--tiles", is_flag=True, help="Draw the tiles and their raw scores too.")
@click.option("--fail-on-anomaly", is_flag=True, help="Exit with 3 where an image is anomalous.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier call.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    bundle: Path,
    sources: tuple[Path, ...],
    device: str,
    precision: str,
    score_merge: str | None,
    bits: int | None,
    tiles: bool,
    fail_on_anomaly: bool,
    overwrite: bool,
    output: Path,
) -> None:
    """Inspect images: scores, overlays, masks.

    A SOURCE is an image or a folder of images. OUTPUT receives overlays/NAME.png, masks/NAME.png (at the image's own
    size) and results.jsonl, one line per image as soon as it is done. On stdout: score, verdict, image. An image that
    cannot be read does not stop the others; the exit code is then 1.
    """
    images = named_images(sources)
    with load(bundle, device, precision=precision, score_merge=score_merge) as detector:
        _prepare(output, overwrite)
        failed = anomalous = 0
        with (output / RESULTS).open("w", encoding="utf-8") as results:
            for name, path in images:
                record: dict[str, Any] = {"source": str(path), "time_utc": datetime.now(UTC).isoformat()}
                try:
                    result = inspect_image(detector, path, output, name, PixelFormat(bits), tiles)
                except (UnreadableImageError, PixelFormatError) as error:
                    failed += 1
                    record |= {"error": str(error)}
                    click.echo(f"error: {error}", err=True)
                else:
                    anomalous += result.pred_label
                    record |= result_record(result, name)
                    click.echo(f"{result.pred_score:.4f}  {_verdict(result):9}  {path}")
                results.write(json.dumps(record, allow_nan=False) + "\n")
                results.flush()
    done = len(images) - failed
    if not obj["quiet"]:
        click.echo(f"{done} inspected, {anomalous} anomalous, {failed} failed; see {output / RESULTS}", err=True)
    if failed:
        raise EdgeAdError(f"{failed} of {len(images)} images could not be read; see 'error' in {output / RESULTS}")
    if fail_on_anomaly and anomalous:
        raise GateError(f"{anomalous} of {len(images)} images are anomalous")


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


def inspect_image(
    detector: Detector, path: Path, output: Path, name: str, pixel_format: PixelFormat, tiles: bool
) -> Result:
    """The result of one image file, its overlay and mask written below ``output``."""
    image = read_image(path, pixel_format)
    result = detector(image, color="rgb", frame_id=name)
    write_png(output / OVERLAYS / f"{name}.png", overlay.draw(image, result, detector.grid if tiles else None))
    mask = resize_mask(result.pred_mask, result.original_size)
    write_png(output / MASKS / f"{name}.png", mask.astype("uint8") * 255)
    return result


def result_record(result: Result, name: str) -> dict[str, Any]:
    """A result as a line of results.jsonl. Regions are in pixels of the map, whose size stands beside them."""
    return {
        "pred_score": result.pred_score,
        "pred_label": result.pred_label,
        "raw_score": result.raw_score,
        "tile_scores": result.tile_scores.tolist(),
        "regions": to_plain(result.regions),
        "map_size": list(result.anomaly_map.shape),
        "image_size": list(result.original_size),
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


def _prepare(output: Path, overwrite: bool) -> None:
    """An output folder without results. Only what an earlier call wrote is ever removed."""
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


def _verdict(result: Result) -> str:
    return "anomalous" if result.pred_label else "normal"
