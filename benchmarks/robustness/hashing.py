"""What checking the hashes of a bundle costs its load: with and without, in turn.

python benchmarks/robustness/hashing.py BUNDLE [--loads 9] [--device CPU]
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
from numpy.typing import NDArray

import edge_ad
from edge_ad.benchmarks.timing import time_interleaved
from edge_ad.bundle import files
from edge_ad.bundle.graph_files import read_array
from edge_ad.bundle.manifest import FileEntry


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--loads", default=9, show_default=True)
@click.option("--device", default="CPU", show_default=True)
def main(bundle: Path, loads: int, device: str) -> None:
    """Print medians and their ratio."""

    def load() -> None:
        edge_ad.load(bundle, device).close()

    def load_unchecked() -> None:
        with patch.object(files, "read_entry", _unchecked):
            load()

    timings = time_interleaved({"hashed": load, "unchecked": load_unchecked}, 1, loads)
    hashed, unchecked = (timings[name].median_ms for name in ("hashed", "unchecked"))
    size_mb = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6
    print(f"{bundle.name}, {size_mb:.0f} MB, median of {loads} loads in turn: {hashed / 1000:.2f} s with hashing,")
    print(f"{unchecked / 1000:.2f} s without, ratio {hashed / unchecked:.3f}")


def _unchecked(root: Path, entry: FileEntry) -> NDArray[np.uint8]:
    return read_array(root / entry.path)


if __name__ == "__main__":
    main()
