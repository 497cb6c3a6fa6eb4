"""``edge-ad predict``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.cli.options import (
    cache_dir_option,
    device_option,
    memory_option,
    pixel_format,
    precision_option,
    signature_option,
    threads_option,
    trained_alpha_option,
    trained_bits_option,
)
from edge_ad.errors import EdgeAdError, GateError, InputError
from edge_ad.runtime.loading import load
from edge_ad.runtime.predictions import RESULTS, named_images, predict_files, prepare_output


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@device_option
@precision_option
@signature_option
@threads_option
@memory_option
@cache_dir_option
@trained_bits_option
@trained_alpha_option
@click.option("--tiles", is_flag=True, help="Draw the tiles and their raw scores too.")
@click.option("--no-images", is_flag=True, help="Write results.jsonl alone, no overlays and no masks.")
@click.option("--self-test", is_flag=True, help="Run the bundle's golden images on the device first.")
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
    require_signature: Path | None,
    threads: int | None,
    memory_budget: str | None,
    cache_dir: Path | None,
    bits: int | None,
    alpha: str | None,
    tiles: bool,
    no_images: bool,
    self_test: bool,
    fail_on_anomaly: bool,
    overwrite: bool,
    output: Path,
) -> None:
    """Inspect images: scores, overlays, masks.

    A SOURCE is an image or a folder of images. OUTPUT receives overlays/NAME.png, masks/NAME.png (at the image's own
    size) and results.jsonl, one line per image as soon as it is done. On stdout: score, verdict, image. An image that
    cannot be read, or for which the model gives NaN, does not stop the others; the exit code is then 1.
    """
    if tiles and no_images:
        raise InputError("--tiles: drawn on the overlays, which --no-images leaves out")
    images = named_images(sources)
    failed = anomalous = 0
    with load(
        bundle,
        device,
        precision=precision,
        threads=threads,
        cache_dir=cache_dir,
        require_signature=require_signature,
        self_test=self_test,
        memory_budget=memory_budget,
    ) as detector:
        prepare_output(output, [path for _, path in images], overwrite=overwrite)
        predictions = predict_files(
            detector,
            images,
            output,
            pixel_format=pixel_format(detector.manifest.input, bits, alpha),
            tiles=tiles,
            pictures=not no_images,
        )
        for prediction in predictions:
            if prediction.result is None:
                failed += 1
                click.echo(f"error: {prediction.error}", err=True)
            else:
                result = prediction.result
                anomalous += result.pred_label
                click.echo(f"{result.pred_score:.4f}  {result.verdict:9}  {prediction.path}")
    if not obj["quiet"]:
        done = len(images) - failed
        click.echo(f"{done} inspected, {anomalous} anomalous, {failed} failed; see {output / RESULTS}", err=True)
    if failed:
        raise EdgeAdError(f"{failed} of {len(images)} images could not be inspected; see 'error' in {output / RESULTS}")
    if fail_on_anomaly and anomalous:
        raise GateError(f"{anomalous} of {len(images)} images are anomalous")
