"""``edge-ad distill``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("distill")
@click.argument("photographs", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The teacher, FILE.safetensors.")
@click.option("--size", type=click.Choice(["s", "m"]), default="s", show_default=True, help="EfficientAD-S or -M.")
@click.option("--backbone", default="wide_resnet101_2", show_default=True, help="Any timm network to learn from.")
@click.option("--layers", default="", help="timm layers, comma separated.  [default: those of stride 8 and 16]")
@click.option("--weights", default="auto", show_default=True, metavar="auto|none|FILE", help="Of the backbone.")
@click.option("--steps", type=click.IntRange(min=1), default=60_000, show_default=True, help="Training steps.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Photographs per step.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="Of Adam.")
@click.option("--image-size", type=click.IntRange(min=64), default=256, show_default=True, help="Side, pixels.")
@click.option("--bf16", is_flag=True, help="Networks in bfloat16: faster where the device multiplies it.")
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda, cuda:1.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights, batches and grey photographs."
)
@click.pass_obj
def command(
    obj: dict[str, bool],
    photographs: Path,
    output: Path,
    size: str,
    backbone: str,
    layers: str,
    weights: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    image_size: int,
    bf16: bool,
    device: str,
    seed: int,
) -> None:
    """Teach EfficientAD's small teacher what a large network knows.

    PHOTOGRAPHS is a folder of ordinary photographs, the more the better; ImageNet's in the paper. Killed, it continues
    where it was last saved when called again. Pass the result to edge-ad train --method efficient_ad --weights FILE,
    or to --method uninformed_students --backbone pdn_s (or pdn_m) --weights FILE.
    """
    from edge_ad.progress import terminal_progress
    from edge_ad.training.distillation import Distillation, distil
    from edge_ad.training.trainer import open_device

    settings = Distillation(
        size=size,
        backbone=backbone,
        layers=tuple(part.strip() for part in layers.split(",") if part.strip()),
        weights=weights,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        image_px=image_size,
        seed=seed,
        bf16=bf16,
    )
    with terminal_progress(not obj["quiet"]) as progress:
        loss = distil(photographs, output, settings, device=open_device(device), progress=progress)
    click.echo(f"{output}: EfficientAD-{size.upper()} teacher of {backbone}, {steps} steps, loss {loss:.4f}")
