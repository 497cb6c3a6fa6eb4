"""Malformed manifests, IRs, ONNX models, safetensors and images: each must end in a typed error, or do no harm.

    python benchmarks/robustness/fuzz.py                   # 2000 inputs of each kind
    python benchmarks/robustness/fuzz.py --count 30 --kind ir

Graphs are mutated and then hashed anew, so that the engines see them: this is what a stranger's bundle can do, where no
signature is required. Every input has a child process of its own, with bounded memory and time. An input that is
accepted was not malformed enough: the detector ran it and gave finite numbers, or the image was decoded.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import cv2
import numpy as np
import onnxruntime  # noqa: F401 - before the forks
import openvino  # noqa: F401
import sandbox
import torch
from safetensors.torch import save
from tiny_bundle import some_image, write_tiny_bundle

import edge_ad
from edge_ad.bundle.files import file_entry, with_digest
from edge_ad.bundle.manifest import Format
from edge_ad.imaging import read_image
from edge_ad.records import to_plain
from edge_ad.runtime import onnxruntime_session, openvino_session  # noqa: F401
from edge_ad.training.run_folder import load_tensors

MEMORY_BYTES = 2**30  # beyond what is mapped at the start; a whole tiny bundle takes a third of it
TIMEOUT_S = 60
NUMBERS = (0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30, -1, -(2**63))

Change = Callable[[random.Random, bytes], bytes]


def flip(draw: random.Random, content: bytes) -> bytes:
    """One to four bits."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: random.Random, content: bytes) -> bytes:
    """A piece is missing, often the end."""
    start = draw.randrange(len(content))
    return content[:start] if draw.random() < 0.5 else content[:start] + content[start + draw.randint(1, 64) :]


def repeat(draw: random.Random, content: bytes) -> bytes:
    """A piece comes twice, somewhere."""
    start, at = draw.randrange(len(content)), draw.randrange(len(content))
    piece = content[start : start + draw.randint(1, 256)]
    return content[:at] + piece + content[at:]


def overwrite(draw: random.Random, content: bytes) -> bytes:
    """One to sixteen bytes by a value that readers stumble over."""
    at, count = draw.randrange(len(content)), draw.randint(1, 16)
    value = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80", b"<", b'"'])
    return content[:at] + value * count + content[at + count :]


def renumber(draw: random.Random, content: bytes) -> bytes:
    """A decimal number by another, as text has them."""
    found = list(re.finditer(rb"-?\d+", content))
    if not found:
        return flip(draw, content)
    number = draw.choice(found)
    return content[: number.start()] + str(draw.choice(NUMBERS)).encode() + content[number.end() :]


def swap_words(draw: random.Random, content: bytes) -> bytes:
    """A name by another name of the same text."""
    words = list(re.finditer(rb"[A-Za-z_]\w+", content))
    if len(words) < 2:
        return flip(draw, content)
    old, new = draw.sample(words, 2)
    return content[: old.start()] + new[0] + content[old.end() :]


BINARY = (flip, cut, repeat, overwrite)
TEXT = (*BINARY, renumber, renumber, renumber, swap_words, swap_words)


def change_json(draw: random.Random, content: bytes) -> bytes:
    """A value anywhere in a JSON text by one of another type or size; or a field that is missing, or strange."""
    try:
        value = json.loads(content)
    except ValueError:  # broken already by another change
        return renumber(draw, content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if not isinstance(value, (dict, list)):
        return renumber(draw, content)
    walk(value)
    node, key = draw.choice(places)
    strange = [None, True, "", "x" * 1000, [], {}, [[]] * 5, 1e308, 0.5, *NUMBERS, *(node[k] for node, k in places[:9])]
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = copy.deepcopy(draw.choice(strange))
    return json.dumps(value).encode()


def change_manifest(draw: random.Random, content: bytes) -> bytes:
    """`change_json` with the digest of what became of it: or nothing behind the digest would be tried."""
    changed = json.loads(content := change_json(draw, content))
    if not isinstance(changed, dict):
        return content
    changed.pop("digest", None)
    return json.dumps(with_digest(changed)).encode()


def rehash(bundle: Path) -> None:
    """Make the manifest agree with the files."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    entries = [file for graph in manifest["graphs"] for file in graph["files"]]
    for entry in (*entries, *(golden["file"] for golden in manifest["golden"])):
        entry.update(to_plain(file_entry(bundle, entry["path"])))
    del manifest["digest"]
    path.write_text(json.dumps(with_digest(manifest)))


class Subject:
    """One kind of input: a valid one, where it lies, how it is changed and what reads it."""

    def __init__(self, files: list[Path], changes: tuple[Change, ...], read: Callable[[], object]) -> None:
        self.files = files
        self.originals = [file.read_bytes() for file in files]
        self.changes = changes
        self.read = read

    def mutants(self, count: int, seed: str) -> Iterator[str]:
        """Put one malformed input after the other in its place; yields a name for each that makes it again."""
        for index in range(count):
            draw = random.Random(f"{seed}-{index}")
            which = draw.randrange(len(self.files))
            content, names = self.originals[which], []
            for _ in range(draw.choice([1, 1, 1, 2, 3])):
                change = draw.choice(self.changes)
                names.append(change.__name__)
                content = change(draw, content or b"\0")
            self.files[which].write_bytes(content)
            yield f"{seed}-{index}: {self.files[which].name} {', '.join(names)}"
            self.files[which].write_bytes(self.originals[which])


def subjects(folder: Path) -> dict[str, Subject]:
    """By kind."""
    found = {}
    for graph_format, kind, suffixes in (
        (Format.OPENVINO, "ir", (".xml", ".bin")),
        (Format.ONNX, "onnx", (".onnx",)),
    ):
        bundle = write_tiny_bundle(folder / kind, graph_format=graph_format)
        files = [file for file in sorted((bundle / "graphs").iterdir()) if file.suffix in suffixes]
        found[kind] = Subject(files, TEXT if kind == "ir" else BINARY, lambda bundle=bundle: _load(bundle, True))
    bundle = write_tiny_bundle(folder / "manifest")
    found["manifest"] = Subject(
        [bundle / "manifest.json"], (*TEXT, *(change_manifest,) * 9), lambda bundle=bundle: _load(bundle, False)
    )
    tensors = {"mean": torch.arange(70.0).reshape(7, 10), "index": torch.arange(5)}
    heads = folder / "head.safetensors"
    heads.write_bytes(save(tensors))
    found["safetensors"] = Subject([heads], TEXT, lambda: load_tensors(heads))
    pictures = []
    noise = np.random.default_rng(0).integers(0, 256, (23, 29, 3), np.uint8)
    for suffix in (".png", ".jpg", ".bmp", ".tif"):
        pictures.append(folder / f"image{suffix}")
        pictures[-1].write_bytes(cv2.imencode(suffix, noise)[1].tobytes())
    found["image"] = Subject(pictures, BINARY, lambda: [read_image(path) for path in pictures])
    return found


def _load(bundle: Path, hash_anew: bool) -> None:
    if hash_anew:
        rehash(bundle)
    with edge_ad.load(bundle) as detector:
        detector(some_image(detector.manifest.setup), color="rgb")


def main() -> None:
    """Run, print one line per kind and one over all; exit with 1 where an input was not refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="inputs of each kind")
    parser.add_argument("--kind", action="append", help="manifest, ir, onnx, safetensors or image; all without")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were not refused")
    parser.add_argument("--verbose", action="store_true", help="print every input and its end")
    options = parser.parse_args()
    endings: Counter[sandbox.Kind] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for kind, subject in subjects(Path(name)).items():
            if options.kind and kind not in options.kind:
                continue
            whole = sandbox.run(subject.read, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S)
            if whole.kind is not sandbox.Kind.ACCEPTED:
                sys.exit(f"{kind}: the input is refused as it is: {whole}")
            counts: Counter[sandbox.Kind] = Counter()
            grown_bytes = whole.grown_bytes
            for mutant in subject.mutants(options.count, f"{kind}-{options.seed}"):
                ending = sandbox.run(subject.read, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S)
                counts[ending.kind] += 1
                grown_bytes = max(grown_bytes, ending.grown_bytes)
                if options.verbose:
                    print(f"{mutant}: {ending.kind}: {ending.error} {ending.message}", flush=True)
                if ending.kind not in (sandbox.Kind.REFUSED, sandbox.Kind.ACCEPTED):
                    print(f"{mutant}: {ending.kind}: {ending.error} {ending.message}", flush=True)
                    if options.keep:
                        shutil.copytree(name, options.keep / mutant.partition(":")[0], dirs_exist_ok=True)
            print(f"{kind}: {_line(counts)}; at most {grown_bytes / 2**20:.0f} MiB more memory", flush=True)
            endings += counts
    malformed = endings.total() - endings[sandbox.Kind.ACCEPTED]
    print(f"malformed inputs refused {endings[sandbox.Kind.REFUSED]}/{malformed} ({_line(endings)})")
    sys.exit(endings[sandbox.Kind.REFUSED] != malformed)


def _line(counts: Counter[sandbox.Kind]) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in sandbox.Kind)


if __name__ == "__main__":
    main()
