"""What a memory budget saves and costs: peak memory and time per frame, each budget in a process of its own.

    python benchmarks/robustness/budget.py BUNDLE [--frames 5] [--budget 300MB ...]

Without ``--budget``: none, half of what all graphs are taken to need, and the least that works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

import edge_ad
from edge_ad.benchmarks.memory import peak_resident_bytes, resident_bytes
from edge_ad.bundle.files import read_manifest
from edge_ad.runtime.devices import list_devices
from edge_ad.runtime.residency import loaded_bytes, parse_bytes, turn_takers


def measure(bundle: Path, budget: int | None, frames: int) -> dict[str, float]:
    """Memory beyond what the process and the idle engine had, and time, in this process."""
    list_devices()  # loads the engine and its plugins
    before = resident_bytes() or 0
    with edge_ad.load(bundle, memory_budget=budget) as detector:
        image = np.zeros((*detector.image_size, 3), np.uint8)
        detector(image, color="rgb")
        start_s = time.perf_counter()
        for _ in range(frames):
            result = detector(image, color="rgb")
        frame_ms = (time.perf_counter() - start_s) / frames * 1000
    peak = (peak_resident_bytes() or 0) - before
    return {"peak_mb": peak / 1e6, "frame_ms": frame_ms, "score": result.raw_score}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--frames", default=5, show_default=True)
@click.option("--budget", "budgets", multiple=True, help="Again for each.")
@click.option("--here", hidden=True, help="Measure this budget in this process, and print JSON.")
def main(bundle: Path, frames: int, budgets: tuple[str, ...], here: str | None) -> None:
    """Print a markdown table."""
    if here is not None:
        print(json.dumps(measure(bundle, int(here) or None, frames)))
        return
    manifest = read_manifest(bundle)
    shared = loaded_bytes(manifest.shared) if manifest.shared else 0
    sizes = [loaded_bytes(head) for head in manifest.heads]
    least = shared + 2 * max(sizes)
    asked = [parse_bytes(budget) for budget in budgets] or [0, max(least, (shared + sum(sizes)) // 2), least]
    click.echo("| budget, MB | heads that take turns | peak beyond the idle engine, MB | ms per frame | over none |")
    click.echo("| ---: | ---: | ---: | ---: | ---: |")
    first: dict[str, float] = {}
    for budget in asked:
        command = [sys.executable, __file__, str(bundle), "--frames", str(frames), "--here", str(budget)]
        got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or got
        if got["score"] != first["score"]:
            raise click.ClickException("a score differs from that without a budget")
        turns = len(turn_takers(manifest.shared, manifest.heads, budget)) if budget else 0
        name = f"{budget / 1e6:.0f}" if budget else "none"
        ratio = got["frame_ms"] / first["frame_ms"]
        click.echo(f"| {name} | {turns} of {len(sizes)} | {got['peak_mb']:.0f} | {got['frame_ms']:.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
