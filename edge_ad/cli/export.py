"""``edge-ad export``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.bundle.manifest import Format, Precision
from edge_ad.cli.options import AmountType, choice


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "graph_format",
    type=choice(Format),
    default="openvino",
    show_default=True,
    help="The engine's: openvino for Intel's CPUs, GPUs and NPUs, onnx for NVIDIA's GPUs.",
)
@click.option(
    "--precision",
    type=choice(Precision),
    default="int8",
    show_default=True,
    help="Of the stored graphs. int8 is for CPUs and Intel GPUs, fp16 for NVIDIA's.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of normal images to calibrate and refit on.  [default: the run's training images]",
)
@click.option(
    "--accuracy-drop",
    type=AmountType(),
    help="Fail where image AUROC drops more, on 8 good images and 8 with planted defects: in steps of 1/64.",
)
@click.option(
    "--parity-tolerance", type=AmountType(), help="Largest map error, of the map's range.  [default: by precision]"
)
@click.option(
    "--rank-correlation",
    type=click.FloatRange(-1, 1),
    help="Least rank correlation of scores, exported and trained.  [default: by precision]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle folder.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    run: Path,
    graph_format: str,
    precision: str,
    calibration: Path | None,
    accuracy_drop: float | None,
    parity_tolerance: float | None,
    rank_correlation: float | None,
    overwrite: bool,
    output: Path,
) -> None:
    """Turn a run into a bundle for the edge.

    The extractor is stored once, a head per tile model. The exported graphs are compared with the trained model; what
    differs too much in float32 is not written. Where this device's default precision changes more than int8 may, a
    line on stderr says so; inspect shows either.
    """
    from edge_ad.bundle.files import required_signature
    from edge_ad.exporters.export import ExportOptions, export_run
    from edge_ad.progress import terminal_progress
    from edge_ad.training.run_folder import RunFolder
    from edge_ad.training.trainer import run_images

    folder = RunFolder.open(run)
    options = ExportOptions(
        Format(graph_format), Precision(precision), accuracy_drop, parity_tolerance, rank_correlation, overwrite
    )
    with terminal_progress(not obj["quiet"]) as progress:
        images = run_images(folder, calibration, progress=progress)
        manifest = export_run(folder, images, output, options, progress)
    size_mb = manifest.size_bytes / 1e6
    click.echo(f"{output}: {manifest.format} {manifest.precision}, {len(manifest.graphs)} graphs, {size_mb:.1f} MB")
    for parity in manifest.parity:
        click.echo(
            f"parity in {parity.execution_precision} on {parity.device}, {parity.images} images: "
            f"map {parity.map_max_abs:.2e} ({parity.map_max_rel:.2e} of its range), score {parity.score_max_abs:.2e}, "
            f"rank correlation {parity.score_rank_correlation:.4f}, label flips {parity.label_flips}"
        )
    if required_signature() is not None and not obj["quiet"]:
        click.echo(f"{output} is not signed: edge-ad sign", err=True)
