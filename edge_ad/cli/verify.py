"""``edge-ad verify``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_ad.bundle.files import read_bundle, required_signature
from edge_ad.cli.options import device_option, precision_option, signature_option, write_table
from edge_ad.runtime.loading import open_detector
from edge_ad.runtime.session import ExecutionPrecision
from edge_ad.runtime.verify import verify_bundle


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@device_option
@precision_option
@signature_option
def command(bundle: Path, device: str, precision: str, require_signature: Path | None) -> None:
    """Prove that a bundle is unchanged and computes what it should.

    Every file's SHA-256 is compared with the manifest; then the golden images run on the device, and their scores and
    maps must be those recorded at export. Exit code 2: the bundle was changed; 3: it computes something else here.
    """
    found = read_bundle(bundle, require_signature=require_signature)
    manifest = found.manifest
    click.echo(f"{len(manifest.files)} files, {manifest.size_bytes / 1e6:.1f} MB: unchanged")
    if (key := required_signature(require_signature)) is not None:
        click.echo(f"signed by the owner of {key}")
    with open_detector(found.path, manifest, device, precision=ExecutionPrecision(precision)) as detector:
        click.echo(detector)
        checks = verify_bundle(detector, found)
    header = ("golden image", "expected", "got", "off by", "at most")
    rows = [(c.label, f"{c.expected:.6g}", f"{c.got:.6g}", f"{c.error:.2g}", f"{c.tolerance:.2g}") for c in checks]
    write_table([header, *rows], right=(1, 2, 3, 4))
    click.echo("verified")
