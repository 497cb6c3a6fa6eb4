"""Parameters and operations of every trained method at one tile size, shared and per tile, as a table.

    python benchmarks/experiments/method_costs.py [--tile-size 256] [--backbone resnet18]

Random weights: what is counted does not depend on them. PaDiM, PatchCore and SPADE hold statistics whose size
depends on the training images: `edge-ad inspect` shows those of a bundle.
"""

from __future__ import annotations

from typing import Any

import click

from edge_ad.methods import METHODS, create_model, method_class
from edge_ad.methods.gradient import GradientModel
from edge_ad.methods.parameters import parameters
from edge_ad.training.torch_graph import head_graph, shared_graph

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "efficient_ad": [
        {"size": "s", "mirror": False},
        {"size": "m", "mirror": False},
        {"size": "s"},
        {"size": "m"},
    ],
    "fastflow": [{}, {"conv3x3_only": False}],
    "uninformed_students": [{}, {"width": 64}, {"fields": (17, 33, 65)}],
}


@click.command()
@click.option("--tile-size", default=256, show_default=True)
@click.option("--backbone", default="resnet18", show_default=True)
def main(tile_size: int, backbone: str) -> None:
    """Print a markdown table."""
    click.echo("| method | shared, million numbers | per tile | shared, billion products | per tile |")
    click.echo("| --- | ---: | ---: | ---: | ---: |")
    for name in METHODS:
        if not issubclass(method_class(name), GradientModel):
            continue
        common = {"backbone": backbone, "weights": "none"}
        known = parameters(method_class(name))
        for variant in VARIANTS.get(name, [{}]):
            given = {key: value for key, value in common.items() if key in known} | variant
            model = create_model(name, (tile_size, tile_size), **given)
            assert isinstance(model, GradientModel)
            shared = shared_graph(model)
            head = head_graph(model, model.new_head().eval(), shared)
            counts = (shared.parameters / 1e6, head.parameters / 1e6, shared.flops() / 2e9, head.flops() / 2e9)
            label = " ".join([name, *(f"{key}={_text(value)}" for key, value in variant.items())])
            click.echo(f"| {label} | {' | '.join(f'{count:.2f}' for count in counts)} |")


def _text(value: Any) -> str:
    """As it is written behind ``-p KEY=``."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


if __name__ == "__main__":
    main()
