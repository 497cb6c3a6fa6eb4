"""``edge-ad threshold``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.bundle.manifest import ScoreMerge
from edge_ad.cli.options import (
    choice,
    device_option,
    pixel_format,
    precision_option,
    signature_option,
    trained_alpha_option,
    trained_bits_option,
    write_table,
)


@click.command("threshold")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--good", type=click.Path(path_type=Path), required=True, help="Folder of normal images.")
@click.option("--bad", type=click.Path(path_type=Path), help="Folder of defective ones: for f1, and to be counted.")
@click.option(
    "--rule", default="sigma:3", show_default=True, help="sigma:K, quantile:Q or max of the good; f1 of both."
)
@click.option("--score-merge", type=choice(ScoreMerge), help="Of the tiles' scores.  [default: the bundle's own]")
@device_option
@precision_option
@signature_option
@trained_bits_option
@trained_alpha_option
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    bundle: Path,
    good: Path,
    bad: Path | None,
    rule: str,
    score_merge: str | None,
    device: str,
    precision: str,
    require_signature: Path | None,
    bits: int | None,
    alpha: str | None,
    overwrite: bool,
    output: Path,
) -> None:
    """Fit a bundle's thresholds anew, on images from the line.

    The new bundle has the same graphs. Take images it was not trained on; where it rejected good ones, add those. Give
    the device and precision that the line runs in: scores differ a little between them. What the old and the new
    thresholds reject of the images is told: of the very images that the new ones were fitted on.
    """
    from edge_ad.bundle.files import SIGNATURE_NAME, read_bundle, staged_bundle
    from edge_ad.errors import InputError
    from edge_ad.evaluation.operating_point import (
        fit_operating_point,
        merged_by,
        rejected,
        summarise_files,
        write_operating_point,
    )
    from edge_ad.evaluation.thresholds import Statistic, ThresholdRule
    from edge_ad.progress import terminal_progress
    from edge_ad.runtime.loading import open_detector
    from edge_ad.runtime.predictions import named_images
    from edge_ad.runtime.session import ExecutionPrecision

    chosen = ThresholdRule.parse(rule)
    if chosen.statistic is Statistic.F1 and bad is None:
        raise InputError("--rule f1 needs defective images too; give --bad, or choose another --rule")
    found = read_bundle(bundle, require_signature=require_signature)
    old = found.manifest
    manifest = merged_by(old, ScoreMerge(score_merge)) if score_merge else old
    read_as = pixel_format(old.input, bits, alpha)
    files = [[path for _, path in named_images([folder])] for folder in (good, bad) if folder]
    if chosen.statistic is not Statistic.F1:
        chosen.check_normal(len(files[0]))
    with staged_bundle(output, overwrite=overwrite) as stage:
        with (
            open_detector(found.path, manifest, device, precision=ExecutionPrecision(precision)) as detector,
            terminal_progress(not obj["quiet"]) as progress,
        ):
            values = [summarise_files(detector, paths, read_as, progress) for paths in files]
        normalisation = fit_operating_point(old.normalisation, rule, *values)
        write_operating_point(found, manifest, normalisation, stage)
    compares = manifest.merge == old.merge
    rows = [("", "before", "now"), ("rule", old.normalisation.rule, normalisation.rule)]
    rows.append(("tiles' scores", old.merge.score, manifest.merge.score))
    rows.append(("raw threshold", f"{old.normalisation.score.threshold:.4g}", f"{normalisation.score.threshold:.4g}"))
    for what, of in zip(("good rejected", "bad rejected"), values, strict=False):
        before = f"{rejected(of, old.normalisation)} of {len(of.scores)}" if compares else "-"
        rows.append((what, before, f"{rejected(of, normalisation)} of {len(of.scores)}"))
    write_table(rows)
    if (found.path / SIGNATURE_NAME).exists() and not obj["quiet"]:
        click.echo(f"{output} is not signed: edge-ad sign", err=True)
