"""``edge-ad sign``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.bundle.files import sign_bundle


@click.command("sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Private Ed25519 key, a PEM file.",
)
def command(bundle: Path, key: Path) -> None:
    """Sign a bundle, so that a line can require it.

    Every file is compared with the manifest first. The signature of the manifest, which holds the hashes of all other
    files, becomes BUNDLE/manifest.sig; commands that load a bundle check it with --require-signature PUBKEY. Keys:
    openssl genpkey -algorithm ed25519 -out KEY, then openssl pkey -in KEY -pubout -out PUBKEY.
    """
    click.echo(f"{sign_bundle(bundle, key)}: signed")
