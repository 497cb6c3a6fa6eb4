"""One detector, many client threads: are all results those of a single thread, and what does a crowd cost?

    python benchmarks/robustness/load.py [--frames 1000] [--rounds 5] [BUNDLE]

Without a bundle: the tiny one of `soak.py`. Clients of one detector take turns, so more of them give no more images per
second; they must not give fewer, and no result may differ by a bit. Exit code 1 where one does. One thread of the
engine: with more, its workers fall asleep between the calls of a single client, and on a busy machine what is measured
is how fast they wake up.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from soak import IMAGES, tiny_bundle

import edge_ad
from edge_ad.runtime.detector import Detector

CLIENTS = (1, 4, 16)


@dataclass(frozen=True)
class Load:
    """Of one number of client threads."""

    clients: int
    frames: int
    seconds: float
    differing: int  # results that differ from those of a single thread

    @property
    def frames_per_s(self) -> float:
        """Of all clients together."""
        return self.frames / self.seconds


def measure(detector: Detector, clients: int, frames: int) -> Load:
    """Share ``frames`` frames among ``clients`` threads that ask as fast as they can."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*detector.image_size, 3), dtype=np.uint8) for _ in range(IMAGES)]
    expected = [detector(image, color="rgb") for image in images]

    def client(index: int) -> int:
        differing = 0
        for number in range(index, frames, clients):
            result, alone = detector(images[number % IMAGES], color="rgb"), expected[number % IMAGES]
            same = result.raw_score == alone.raw_score and np.array_equal(result.raw_map, alone.raw_map)
            differing += not same
        return differing

    start_s = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        differing = sum(pool.map(client, range(clients)))
    return Load(clients, frames, time.monotonic() - start_s, differing)


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--frames", default=1000, show_default=True, help="Per round, shared among the clients.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of the engine.")
def main(bundle: Path | None, frames: int, rounds: int, threads: int) -> None:
    """Print a markdown table of the medians over rounds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        edge_ad.load(bundle or tiny_bundle(Path(folder)), threads=threads) as detector,
    ):
        measure(detector, 1, frames // 10)  # warms up
        loads = [[measure(detector, clients, frames) for clients in CLIENTS] for _ in range(rounds)]
    rates = np.array([[load.frames_per_s for load in turn] for turn in loads])
    click.echo("| clients | frames/s | over one client | results that differ |")
    click.echo("| ---: | ---: | ---: | ---: |")
    for index, clients in enumerate(CLIENTS):
        rate, ratio = np.median(rates[:, index]), np.median(rates[:, index] / rates[:, 0])
        differing = sum(turn[index].differing for turn in loads)
        click.echo(f"| {clients} | {rate:.1f} | {ratio:.2f} | {differing} of {rounds * frames} |")
    sys.exit(any(load.differing for turn in loads for load in turn))


if __name__ == "__main__":
    main()
