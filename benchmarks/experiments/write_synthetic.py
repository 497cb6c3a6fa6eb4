"""Write a synthetic data set: `plates` (MVTec layout, as edge-ad demo draws them) or one of two with logical
defects (MVTec LOCO layout), `logical` with thousands of good assemblies and `variants` with four.

    python benchmarks/experiments/write_synthetic.py logical sets/logical [--size 512] [--seed 0]

Both are deterministic by seed; what they show is in edge_ad/data/synthetic.py, logical.py and variants.py.
"""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.cli.options import SizeType
from edge_ad.data.logical import COUNTED
from edge_ad.data.synthetic import write_synthetic
from edge_ad.data.variants import LABELLED
from edge_ad.progress import terminal_progress
from edge_ad.tiling import Size

SETS = {"plates": write_synthetic, "logical": COUNTED.write, "variants": LABELLED.write}


@click.command()
@click.argument("name", type=click.Choice(list(SETS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--size", type=SizeType(), default="512", show_default=True, help="Of the images, such as 512 or 512x640."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(name: str, folder: Path, size: Size, seed: int) -> None:
    """Write the set NAME into FOLDER, which must not exist."""
    with terminal_progress(True) as progress:
        SETS[name](folder, seed=seed, size=size, progress=progress)
    click.echo(f"{folder}: {sum(1 for _ in folder.rglob('*.png'))} images and masks")


if __name__ == "__main__":
    main()
