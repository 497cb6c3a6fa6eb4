"""``edge-ad inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_ad.bundle.files import read_bundle
from edge_ad.bundle.manifest import Manifest
from edge_ad.cli.options import json_option, signature_option, write_json, write_table
from edge_ad.tiling import Location


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@signature_option
@json_option
def command(bundle: Path, require_signature: Path | None, json_target: str | None) -> None:
    """Show what is in a bundle.

    Names and sizes of the files are checked, their contents are not: that is what verify is for.
    """
    manifest = read_bundle(bundle, check_hashes=False, require_signature=require_signature).manifest
    if json_target is not None:
        write_json(json_target, {"path": str(bundle), "totals": totals(manifest), "manifest": manifest.to_json()})
    if json_target == "-":
        return
    _show_summary(bundle, manifest)
    _show_graphs(manifest)
    _show_parity(manifest)
    _show_provenance(manifest)


def totals(manifest: Manifest) -> dict[str, Any]:
    """Sizes and cost of the whole: files, graphs' parameters, and the operations of one image over all its tiles."""
    shared, heads = manifest.shared, manifest.heads
    return {
        "size_bytes": manifest.size_bytes,
        "shared_bytes": shared.size_bytes if shared else 0,
        "head_bytes": [head.size_bytes for head in heads],
        "golden_bytes": sum(golden.file.size_bytes for golden in manifest.golden),
        "tiles": len(manifest.setup.grid),
        "models": len(heads),
        "parameters": manifest.parameters,
        "flops_per_image": manifest.flops_per_image,
    }


def _show_summary(bundle: Path, manifest: Manifest) -> None:
    method, merge, norm, cost = manifest.method, manifest.merge, manifest.normalisation, totals(manifest)
    config = ", ".join(f"{name} {value}" for name, value in method.config.items())
    heads = f"{len(manifest.heads)} x head {sum(cost['head_bytes']) / len(manifest.heads) / 1e6:.2f}"
    parts = f"shared {cost['shared_bytes'] / 1e6:.2f} + {heads}" if manifest.shared else heads
    thresholds = f"score {norm.score.threshold:.4g}, map {norm.map.threshold:.4g}"
    seams = f"seams sigma {merge.seam_sigma_px:g} px" if merge.seam_band else "no seam smoothing"
    write_table(
        [
            ("bundle", bundle),
            ("graphs", f"{manifest.precision} {manifest.format}"),
            ("method", f"{method.name}, {method.backbone}" + (f" ({config})" if config else "")),
            ("setup", manifest.setup),
            ("tiles", repr(manifest.setup.grid)),
            *([("region of interest", _region(manifest.roi.path, manifest))] if manifest.roi else []),
            ("merge", f"{merge.score} of the tile scores, {seams}"),
            ("thresholds", f"{thresholds} (raw), scaled by {norm.stage}: {norm.rule}"),
            ("size", f"{cost['size_bytes'] / 1e6:.2f} MB = {parts} + golden {cost['golden_bytes'] / 1e6:.2f}"),
            ("parameters", f"{cost['parameters'] / 1e6:.2f} M"),
            ("operations", f"{cost['flops_per_image'] / 1e9:.2f} GFLOP per image"),
        ]
    )


def _region(path: str, manifest: Manifest) -> str:
    blank = len(manifest.setup.blank_tiles)
    return f"{path}; {blank} of {len(manifest.setup.grid)} tiles lie outside and are left out" if blank else path


def _show_graphs(manifest: Manifest) -> None:
    rows = [
        (
            "shared" if graph.location is None else f"head {Location(*graph.location).name}",
            graph.precision,
            "f32" if graph.keep_f32 else "as the device",
            f"{graph.parameters:,}",
            f"{graph.flops / 1e6:.1f}",
            f"{graph.size_bytes / 1e6:.2f}",
        )
        for graph in manifest.graphs
    ]
    click.echo()
    write_table([("graph", "stored", "float parts run in", "parameters", "MFLOP/run", "MB"), *rows], right=(3, 4, 5))


def _show_parity(manifest: Manifest) -> None:
    rows = [
        (
            parity.execution_precision,
            parity.device,
            parity.images,
            f"{parity.map_max_abs:.2e}",
            f"{parity.map_max_rel:.2e}",
            f"{parity.score_max_abs:.2e}",
            f"{parity.score_rank_correlation:.4f}",
            parity.label_flips,
        )
        for parity in manifest.parity
    ]
    click.echo()
    header = ("parity in", "on", "images", "map off by", "of its range", "score off by", "rank corr.", "label flips")
    write_table([header, *rows], right=range(2, len(header)))


def _show_provenance(manifest: Manifest) -> None:
    made = manifest.provenance
    click.echo()
    write_table(
        [
            ("created", made.created_utc),
            ("data", f"{made.training_images} training images, digest {made.data_digest[:12]}"),
            ("weights", made.weights),
            ("seed", made.seed),
            ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
            *(("golden", f"{golden.label}: raw score {golden.raw_score:.6g}") for golden in manifest.golden),
        ]
    )
