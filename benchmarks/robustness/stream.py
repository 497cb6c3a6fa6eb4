"""How near a stream comes to what its graphs can do: frames per second of the stream over those of the bare sessions.

    python benchmarks/robustness/stream.py BUNDLE [--frames 50] [--rounds 5] [--device CPU] [--reader-ms 0]

In turns, round by round: the bare sessions on tiles already cut, calls one after the other, and a stream whose source
gives frames as fast as they are taken. ``--reader-ms`` keeps the reader busy (asleep) that long per result, as drawing
and writing would: calls wait for it, the stream infers meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import edge_ad
from edge_ad.benchmarks.protocol import BareRun
from edge_ad.runtime.detector import Detector


def round_of(detector: Detector, frames: int, reader_s: float) -> dict[str, Callable[[], None]]:
    """The three ways to run ``frames`` frames."""
    image = np.random.default_rng(0).integers(0, 256, (*detector.image_size, 3), dtype=np.uint8)
    bare = BareRun(detector, image[None])

    def bare_sessions() -> None:
        for _ in range(frames):
            bare()

    def calls() -> None:
        for _ in range(frames):
            detector(image, color="bgr")
            time.sleep(reader_s)

    def stream() -> None:
        for _ in detector.stream((image for _ in range(frames)), color="bgr"):
            time.sleep(reader_s)

    return {"bare sessions": bare_sessions, "calls": calls, "stream": stream}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--frames", default=50, show_default=True, help="Per round and way.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="CPU", show_default=True)
@click.option("--reader-ms", default=0.0, show_default=True)
def main(bundle: Path, frames: int, rounds: int, device: str, reader_ms: float) -> None:
    """Print a markdown table of the medians over rounds."""
    with edge_ad.load(bundle, device) as detector:
        ways = round_of(detector, frames, reader_ms / 1000)
        for way in ways.values():
            way()  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start_s = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start_s)
        click.echo(f"{detector}\n")
    bare = np.array(seconds["bare sessions"])
    click.echo("| | frames/s | over the bare sessions, median of rounds | lowest | highest |")
    click.echo("| --- | ---: | ---: | ---: | ---: |")
    for name, taken in seconds.items():
        ratios = bare / np.array(taken)  # round by round: what slows the machine slows its neighbours
        rate = frames / float(np.median(taken))
        numbers = (f"{value:.3f}" for value in (np.median(ratios), ratios.min(), ratios.max()))
        click.echo(f"| {name} | {rate:.1f} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    main()
