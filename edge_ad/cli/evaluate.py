"""``edge-ad evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_ad import atomic
from edge_ad.cli.options import (
    SizeType,
    category_option,
    check_targets,
    data_option,
    device_option,
    layout_option,
    pixel_format,
    precision_option,
    signature_option,
    trained_alpha_option,
    trained_bits_option,
    write_json,
)
from edge_ad.tiling import Size

if TYPE_CHECKING:
    from edge_ad.methods.tile_model import Losses


@click.command("evaluate")
@click.argument("model", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@data_option
@layout_option
@category_option
@trained_bits_option
@trained_alpha_option
@device_option
@precision_option
@signature_option
@click.option(
    "--metrics-size",
    type=SizeType(),
    help="Where pixels are compared: height x width, or one number for a square.  [default: the setup's image size]",
)
@click.option(
    "--pro-limit",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.3,
    show_default=True,
    help="False-positive rate up to which AUPRO integrates.",
)
@click.option(
    "--spro-limit",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.05,
    show_default=True,
    help="The same of AU-sPRO, of sets with defects_config.json.",
)
@click.option("--json", "json_path", type=click.Path(allow_dash=True), help="Write the figures here; - for stdout.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for JSON, markdown, curves and losses.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    model: Path,
    data: Path,
    layout: str,
    category: str | None,
    bits: int | None,
    alpha: str | None,
    device: str,
    precision: str,
    require_signature: Path | None,
    metrics_size: Size | None,
    pro_limit: float,
    spro_limit: float,
    json_path: str | None,
    output: Path | None,
) -> None:
    """Measure a run or a bundle on labelled test images.

    Image AUROC, AUPR, F1-max, and F1, precision and recall at the model's own threshold; where there are masks also
    pixel AUROC, AUPR, F1-max and AUPRO (8-connected regions), and what the masks at the map's threshold find. AUROC and
    AUPRO also by kind of defect; layout loco adds AU-sPRO, by the saturation areas of its defects_config.json. Metrics
    are taken on raw merged values. A run is evaluated as it was trained, in float32, on the CPU or --device CUDA;
    precision and signature are for bundles.
    """
    from edge_ad.bundle.files import MANIFEST_NAME
    from edge_ad.data.cache import image_sizes, open_cache
    from edge_ad.data.layouts import read_dataset
    from edge_ad.data.saturation import defects_config_of
    from edge_ad.errors import BundleNotFoundError, EmptyDataError, InputError
    from edge_ad.evaluation.evaluate import evaluate
    from edge_ad.evaluation.report import REPORT_NAME, to_json, to_markdown, write_report
    from edge_ad.experiment.plots import losses_png
    from edge_ad.progress import terminal_progress
    from edge_ad.runtime.loading import load
    from edge_ad.training.run_detector import run_detector
    from edge_ad.training.run_folder import RunFolder
    from edge_ad.training.trainer import open_device

    dataset = read_dataset(data, layout, category, trains=False)
    if not dataset.test:
        raise EmptyDataError(f"{data} has no test images in layout {layout!r}")
    check_targets(json_path, output and output / REPORT_NAME)
    defects_config = defects_config_of(dataset)
    losses: dict[str, Sequence[Losses]] = {}
    if (model / "run.json").exists():
        if require_signature is not None:
            raise InputError(f"{model} is a run, and only bundles are signed; leave --require-signature out")
        run = RunFolder.open(model)
        if precision not in ("auto", "f32"):
            raise InputError(f"{model} is a run, which is evaluated in float32; leave --precision out, or export it")
        detector = run_detector(run, run.model().to(open_device(device)), normalisation=run.normalisation())
        locations = run.settings.setup.model_locations
        losses = {location.name: found for location in locations if (found := run.losses(location))}
    else:
        if not (model / MANIFEST_NAME).is_file():
            what = f"it has no run.json and no {MANIFEST_NAME}" if model.is_dir() else "no such folder"
            raise BundleNotFoundError(f"{model} is neither a run nor a bundle: {what}")
        detector = load(model, device, precision=precision, require_signature=require_signature)
    with detector, terminal_progress(not obj["quiet"]) as progress:
        for size in image_sizes([sample.path for sample in dataset.test]):
            detector.check_proportions(size)
        cached = open_cache(
            dataset.test, detector.image_size, pixel_format(detector.manifest.input, bits, alpha), progress=progress
        )
        evaluation = evaluate(
            detector,
            cached.images,
            dataset.test,
            threshold=detector.manifest.normalisation.score.threshold,
            map_threshold=detector.manifest.normalisation.map.threshold,
            inside=detector.inside,
            metrics_size=metrics_size,
            pro_limit=pro_limit,
            defects_config=defects_config,
            spro_limit=spro_limit,
            progress=progress,
        )
    about = {"model": str(model), "data": str(data), "category": dataset.name, "detector": repr(detector)}
    title = f"{model.name} on {dataset.name}"
    # Shown first: a disk that has become full meanwhile then takes no figures with it
    if json_path != "-":
        click.echo(to_markdown(evaluation, title))
    if json_path is not None:
        write_json(json_path, to_json(evaluation, **about))
    if output is not None:
        write_report(output, evaluation, title, **about)
        if losses:
            atomic.write_bytes(output / "losses.png", losses_png(losses))
