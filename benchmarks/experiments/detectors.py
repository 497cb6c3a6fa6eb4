"""Several detectors in one process, one per thread: images per second, against one detector that has all CPUs.

    python benchmarks/experiments/detectors.py [--count 2] [--rounds 7] [--images 30] BUNDLE

Rounds of the three ways follow each other, so that a busy machine is busy for all; medians, and of ratios in one round.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import click
import numpy as np

import edge_ad
from edge_ad.runtime.detector import Detector
from edge_ad.runtime.processor import usable_cpus


def measure(detectors: list[Detector], images: int) -> tuple[float, float]:
    """(images per second of all together, median ms per image), each detector running ``images`` in its own thread."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, *detectors[0].image_size, 3), dtype=np.uint8)

    def run(detector: Detector) -> list[float]:
        laps_s = [time.perf_counter()]
        for _ in range(images):
            detector.raw(image)
            laps_s.append(time.perf_counter())
        return np.diff(laps_s).tolist()

    with ThreadPoolExecutor(len(detectors)) as pool:
        start_s = time.perf_counter()
        took_s = [each for laps in pool.map(run, detectors) for each in laps]
        total_s = time.perf_counter() - start_s
    return len(took_s) / total_s, 1e3 * median(took_s)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--count", default=2, show_default=True, help="Detectors.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--images", default=30, show_default=True, help="Of each detector and round.")
def main(bundle: Path, count: int, rounds: int, images: int) -> None:
    """Print a markdown table."""
    share = max(1, usable_cpus() // count)
    ways = {
        "1, as loaded": [edge_ad.load(bundle)],
        f"{count}, as loaded": [edge_ad.load(bundle) for _ in range(count)],
        f"{count}, `threads={share}` each": [edge_ad.load(bundle, threads=share) for _ in range(count)],
    }
    for detectors in ways.values():
        measure(detectors, 5)
    found = [[measure(detectors, images) for detectors in ways.values()] for _ in range(rounds)]
    click.echo("| detectors | images/s | over one | ms per image |")
    click.echo("| --- | ---: | ---: | ---: |")
    for way, name in enumerate(ways):
        rate, took_ms = (median(turn[way][which] for turn in found) for which in (0, 1))
        ratio = median(turn[way][0] / turn[0][0] for turn in found)
        click.echo(f"| {name} | {rate:.1f} | {ratio:.2f} | {took_ms:.1f} |")


if __name__ == "__main__":
    main()
