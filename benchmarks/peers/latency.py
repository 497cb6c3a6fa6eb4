"""Our bundles beside anomalib's torch models: latency at batch 1 on this machine, in turn.

    python benchmarks/peers/latency.py --peer-python peer/bin/python \\
        --weights "$EDGE_AD_DATA/weights/resnet18_imagenet_convs.safetensors" \\
        --bundle padim=results/latency/runs/<ens9 cell>/int8.edgead --bundle patchcore=...

Each side runs in processes of its own, which take turns. Theirs is one model at the tile's size; its ensemble is taken
to cost that times the tiles, without cutting and merging: the least it could. `benchmarks/peers/compare.py` tells how
its environment is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
from compare import PATH, SITE

from edge_ad.bundle.files import read_manifest

WORKER = Path(__file__).with_name("anomalib_latency.py")


def ours(bundle: Path, warmup: int, iterations: int) -> list[float]:
    """Samples in ms of `edge-ad benchmark`, end to end."""
    command = [sys.executable, "-c", "from edge_ad.cli import main; main()", "benchmark", str(bundle)]
    counts = {"--warmup": warmup, "--iterations": iterations, "--batch": 0}
    report = _json([*command, *(str(part) for pair in counts.items() for part in pair), "--json", "-"], None)
    samples: list[float] = report["latency"]["end_to_end"]["samples_ms"]
    return samples


def theirs(
    peer_python: Path, method: str, weights: Path, size: int, bank: int, warmup: int, iterations: int
) -> list[float]:
    """Samples in ms of anomalib's model."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SITE, encoding="utf-8")
        command = [str(peer_python), str(WORKER), method, str(weights)]
        numbers = {"--size": size, "--bank": bank, "--warmup": warmup, "--iterations": iterations}
        samples: list[float] = _json([*command, *(str(part) for pair in numbers.items() for part in pair)], folder)[
            "samples_ms"
        ]
        return samples


def _json(command: list[str], python_path: str | None) -> Any:
    environment = os.environ | ({"PYTHONPATH": python_path} if python_path else {})
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(process.stdout.strip().splitlines()[-1] if python_path else process.stdout)


@click.command()
@click.option("--peer-python", type=PATH, required=True, help="Of its environment.")
@click.option("--weights", type=PATH, required=True, help="ResNet18 under timm's names, safetensors.")
@click.option("--bundle", "bundles", multiple=True, required=True, metavar="METHOD=PATH")
@click.option("--bank", default=2048, show_default=True, help="Vectors in their PatchCore's bank.")
@click.option("--rounds", default=3, show_default=True, help="Turns of each side.")
@click.option("--warmup", default=10, show_default=True, help="Untimed runs per turn.")
@click.option("--iterations", default=50, show_default=True, help="Timed runs per turn.")
def main(
    peer_python: Path, weights: Path, bundles: tuple[str, ...], bank: int, rounds: int, warmup: int, iterations: int
) -> None:
    """Print a markdown table of medians."""
    click.echo(
        "| method | tiles | ours, ms | theirs: one tile, ms | ours / theirs, one tile | ours / theirs, all tiles |"
    )
    click.echo("| --- | ---: | ---: | ---: | ---: | ---: |")
    for given in bundles:
        method, _, path = given.partition("=")
        manifest = read_manifest(Path(path))
        size, tiles = manifest.setup.tile_size[0], len(manifest.setup.grid)
        our_ms: list[float] = []
        their_ms: list[float] = []
        for _ in range(rounds):
            our_ms += ours(Path(path), warmup, iterations)
            their_ms += theirs(peer_python, method, weights.resolve(), size, bank, warmup, iterations)
        mine, peer = median(our_ms), median(their_ms)
        click.echo(f"| {method} | {tiles} | {mine:.1f} | {peer:.1f} | {mine / peer:.2f} | {mine / peer / tiles:.3f} |")


if __name__ == "__main__":
    main()
