"""``edge-ad tile``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.cli.options import signature_option


@click.command("tile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--tile", help="Name of the tile, such as r00_c01.  [default: the only one]")
@signature_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .xml; a .bin goes beside it.")
def command(bundle: Path, tile: str | None, require_signature: Path | None, output: Path) -> None:
    """Write a tile of a bundle as one model for OpenVINO Model API.

    From image to verdict in one graph: extractor, head and thresholds, with the metadata by which Model API runs it as
    AnomalyDetection. For OpenVINO bundles of one tile, or trained with --normalise tile: other thresholds hold for
    merged tiles alone. No signature goes with it.
    """
    from edge_ad.bundle.files import read_bundle
    from edge_ad.exporters.model_api import write_tile

    click.echo(write_tile(read_bundle(bundle, require_signature=require_signature), tile, output))
