"""Every region of every file of a signed bundle, changed: is it refused?

    python benchmarks/robustness/tamper.py                  # 64 bytes of each file of a tiny bundle
    python benchmarks/robustness/tamper.py --bundle B.edgead --every-block

Each time one bit is flipped, the bundle must be refused, its signature required, by `read_bundle` (what verify does)
and by `edge_ad.load`, and the bit is flipped back. With ``--every-block`` it is one bit in every 4 KiB. Files of other
lengths, missing ones and strangers come on top. Graphs are not compiled here: a changed one never gets so far.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from signing_keys import write_keys
from tiny_bundle import write_tiny_bundle

import edge_ad
from edge_ad.bundle.files import read_bundle, sign_bundle
from edge_ad.bundle.manifest import Format
from edge_ad.errors import BundleError
from edge_ad.runtime import loading

BLOCK_BYTES = 4096
SAMPLES = 64  # evenly spaced bytes of a file, first and last among them


@contextmanager
def flipped(file: Path, at: int, bit: int) -> Iterator[None]:
    """One bit of ``file`` is another inside."""

    def flip() -> None:
        with file.open("r+b") as target:
            target.seek(at)
            byte = target.read(1)[0] ^ 1 << bit
            target.seek(at)
            target.write(bytes([byte]))

    flip()
    yield
    flip()


@contextmanager
def replaced(file: Path, change: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """The content of ``file`` is another inside, or the file is missing."""
    before = file.read_bytes() if file.exists() else None
    after = change(before or b"")
    if after is None:
        file.unlink()
    else:
        file.write_bytes(after)
    yield
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)


def positions(size_bytes: int, every_block: bool, draw: random.Random) -> list[int]:
    """Which bytes of a file are changed."""
    if every_block:
        starts = range(0, size_bytes, BLOCK_BYTES)
        return [min(start + draw.randrange(BLOCK_BYTES), size_bytes - 1) for start in starts]
    return sorted({index * (size_bytes - 1) // (SAMPLES - 1) for index in range(SAMPLES)})


def main() -> None:
    """Run, and exit with 1 where a change was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="tiny ones of both formats without")
    parser.add_argument("--every-block", action="store_true")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        private, public = write_keys(folder, "release")
        if options.bundle:
            bundles = [Path(shutil.copytree(options.bundle, folder / "copy.edgead"))]
        else:
            bundles = [write_tiny_bundle(folder / kind, graph_format=kind) for kind in Format]
        for bundle in bundles:
            sign_bundle(bundle, private)
            with mock.patch.object(loading, "open_session"), mock.patch.object(loading, "Detector"):
                total += tamper(bundle, public, options.every_block)
    unnoticed = total.pop("unnoticed", 0)
    kinds = ", ".join(f"{count} {kind}" for kind, count in total.most_common())
    print(f"tamperings refused {total.total()}/{total.total() + unnoticed} ({kinds})")
    sys.exit(unnoticed > 0)


def tamper(bundle: Path, public: Path, every_block: bool) -> Counter[str]:
    """How often each error came, and ``"unnoticed"``."""
    draw = random.Random(0)
    found: Counter[str] = Counter()

    def look(what: str) -> None:
        for read in (read_bundle, edge_ad.load):
            try:
                read(bundle, require_signature=public)
            except BundleError as error:
                found[type(error).__name__] += 1
            else:
                found["unnoticed"] += 1
                print(f"not refused by {read.__name__}: {bundle.name}: {what}")

    edge_ad.load(bundle, require_signature=public)
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    for file in files:
        relative, size_bytes = file.relative_to(bundle).as_posix(), file.stat().st_size
        for at in positions(size_bytes, every_block, draw) if size_bytes else ():
            with flipped(file, at, draw.randrange(8)):
                look(f"{relative}, byte {at}")
        for what, change in (
            ("shorter", lambda content: content[:-1]),
            ("longer", lambda content: content + b"\0"),
            ("empty", lambda content: b""),
            ("missing", lambda content: None),
            ("another file", lambda content: content[::-1]),
        ):
            if size_bytes or what not in ("shorter", "empty", "another file"):
                with replaced(file, change):
                    look(f"{relative} {what}")
    for stranger in ("graphs/extra.onnx", ".hidden", "manifest.sig.old"):
        with replaced(bundle / stranger, lambda content: b"x"):
            look(f"{stranger} added")
    edge_ad.load(bundle, require_signature=public)  # as it was
    return found


if __name__ == "__main__":
    main()
