"""``edge-ad train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from edge_ad.bundle.manifest import NormalisationStage, ScoreMerge
from edge_ad.cli.options import (
    SizeType,
    alpha_option,
    bits_option,
    category_option,
    choice,
    data_option,
    layout_option,
)
from edge_ad.errors import InputError
from edge_ad.imaging import Alpha, PixelFormat
from edge_ad.imaging import image_size as size_of
from edge_ad.methods import METHODS
from edge_ad.setups import SETUPS, ExtractorScope, Sharing
from edge_ad.tiling import Size

BY_STEPS = ("schedule", "steps", "batch_size")  # what methods lack that fit in one go


@click.command("train")
@data_option
@layout_option
@category_option
@bits_option
@alpha_option
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="padim", show_default=True, help="See edge-ad methods."
)
@click.option("--setup", type=click.Choice(list(SETUPS)), default="ens9", show_default=True, help="Tiles and models.")
@click.option(
    "--image-size",
    type=SizeType(native=True),
    help="Height x width, or one number for a square; replaces the setup's. 'native': the images' own.",
)
@click.option("--tile-size", type=SizeType(), help="The same of a tile.")
@click.option(
    "--stride", type=SizeType(), help="The same from tile to tile.  [default with --tile-size: the tile size]"
)
@click.option("--sharing", type=choice(Sharing), help="One model per location, or one for all.")
@click.option("--global-model", is_flag=True, help="One more model, of the whole image shrunk to a tile.")
@click.option(
    "--extractor-scope",
    type=choice(ExtractorScope),
    default="tile",
    show_default=True,
    help="What the frozen extractor sees: every tile, or the whole image once.",
)
@click.option(
    "--roi",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image of where to look, of the images' proportions: what is black in it, 127 of 255 at most, is painted "
    "over, in training and on the line.",
)
@click.option("--backbone", help="Any timm network.  [default: the method's, tf_efficientnet_lite0 for most]")
@click.option("--layers", help="timm layers to tap, comma separated.  [default: the method's]")
@click.option("--weights", default="auto", show_default=True, metavar="auto|none|FILE", help="Pretrained weights.")
@click.option(
    "--schedule",
    help="Of a trained method: 'paper', 200 steps of 32 tiles, as the tiled ensemble's, or 'original', its own.  "
    "[default: paper, where the method has both]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps; replaces the schedule's.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Tiles per training step; replaces the schedule's.")
@click.option(
    "-p",
    "--parameter",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of the method (edge-ad methods NAME lists them); repeatable.",
)
@click.option("--device", default="CPU", show_default=True, help="Where to train: CPU, CUDA, CUDA:1.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of training, and of which images are held out.",
)
@click.option(
    "--held-out",
    type=float,
    help="Part of the images for thresholds.  [default: 0.15; where the data set has normal validation images, those]",
)
@click.option(
    "--threshold", default="sigma:3", show_default=True, help="sigma:K, quantile:Q or max, on held-out images."
)
@click.option(
    "--normalise",
    type=choice(NormalisationStage),
    default="image",
    show_default=True,
    help="What is scaled to 0.5 at its threshold: merged values, or each tile's before that too; none: nothing.",
)
@click.option(
    "--score-merge",
    type=choice(ScoreMerge),
    default="max",
    show_default=True,
    help="Of the tiles' scores; the tiled ensemble's paper takes the mean.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Run folder; continued if begun.")
@click.pass_obj
def command(
    obj: dict[str, bool],
    data: Path,
    layout: str,
    category: str | None,
    bits: int | None,
    alpha: str,
    method: str,
    setup: str,
    image_size: Size | str | None,
    tile_size: Size | None,
    stride: Size | None,
    sharing: str | None,
    global_model: bool,
    extractor_scope: str,
    roi: Path | None,
    backbone: str | None,
    layers: str | None,
    weights: str,
    schedule: str | None,
    steps: int | None,
    batch_size: int | None,
    pairs: tuple[str, ...],
    device: str,
    seed: int,
    held_out: float | None,
    threshold: str,
    normalise: str,
    score_merge: str,
    output: Path,
) -> None:
    """Fit a method on normal images, one tile model after the other.

    Killed, it continues at the tile where it stopped when called again. The run folder holds the extractor once and one
    head per tile model.
    """
    from edge_ad.data.cache import common_size
    from edge_ad.data.layouts import read_dataset
    from edge_ad.evaluation.thresholds import Statistic, ThresholdRule
    from edge_ad.methods import create_model, method_class
    from edge_ad.methods.parameters import parameters as method_parameters
    from edge_ad.methods.parameters import parse_parameters
    from edge_ad.methods.parts.seeding import seeded
    from edge_ad.progress import terminal_progress
    from edge_ad.roi import Roi
    from edge_ad.setups import make_setup
    from edge_ad.training.trainer import HELD_OUT_FRACTION, open_device, read_training_images, train

    if ThresholdRule.parse(threshold).statistic is Statistic.F1:
        raise InputError("--threshold f1: train takes no defective images; fit it afterwards with edge-ad threshold")
    kind = method_class(method)
    named = {"backbone": backbone, "layers": layers, "schedule": schedule, "steps": steps, "batch_size": batch_size}
    given = {key: value for key, value in named.items() if value is not None}
    _refuse_twice(pairs, (*named, "seed", "weights"))
    if lacking := [key for key in given if key not in method_parameters(kind)]:
        what = "is not trained by steps" if lacking[0] in BY_STEPS else "has no such parameter"
        raise InputError(f"{_flag(lacking[0])}: {method} {what}; leave it out (edge-ad methods {method})")
    written = [f"{key}={value}" for key, value in given.items()]
    parameters = parse_parameters(kind, [*written, *pairs], seed=seed, weights=weights)
    train_on = open_device(device)
    dataset = read_dataset(data, layout, category)
    if held_out is not None and dataset.validation:
        raise InputError(
            f"--held-out: {data} has {len(dataset.validation)} normal validation images, which are held out; "
            "leave the option out"
        )
    if isinstance(image_size, str):  # "native"
        image_size = common_size([sample.path for sample in dataset.train])
    chosen = make_setup(
        setup,
        image_size=image_size,
        tile_size=tile_size,
        stride=stride,
        sharing=Sharing(sharing) if sharing else None,
        global_model=global_model or None,
        extractor_scope=ExtractorScope(extractor_scope),
    )
    with terminal_progress(not obj["quiet"]) as progress:
        images = read_training_images(
            dataset,
            chosen,
            root=data,
            layout=layout,
            category=category,
            seed=seed,
            held_out=HELD_OUT_FRACTION if held_out is None else held_out,
            pixel_format=PixelFormat(bits, Alpha(alpha)),
            roi=Roi.read(roi, chosen.image_size, size_of(dataset.train[0].path)) if roi else None,
            progress=progress,
        )
        with seeded(seed):  # of an extractor with random weights
            model = create_model(method, chosen.tile_size, **parameters)
        model.to(train_on)
        run = train(
            model,
            chosen,
            images,
            output,
            seed=seed,
            score_merge=ScoreMerge(score_merge),
            threshold_rule=threshold,
            stage=NormalisationStage(normalise),
            progress=progress,
        )
    scale = run.normalisation().score
    click.echo(f"{output}: {method} {chosen}, {len(images.fit)} images, raw threshold {scale.threshold:.4g}")


def _refuse_twice(pairs: Sequence[str], options: Sequence[str]) -> None:
    """Raises `InputError` where ``-p`` gives a parameter that is given by an option of its own too."""
    source = click.get_current_context().get_parameter_source
    keys = [pair.partition("=")[0].strip() for pair in pairs]
    if twice := [key for key in keys if key in options and source(key) is not ParameterSource.DEFAULT]:
        raise InputError(f"-p {twice[0]}: given by {_flag(twice[0])} too; leave one of them out")


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"
