"""What the files are that an experiment's settings name: a path alone would be the same for another teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from edge_ad.bundle.files import sha256_file
from edge_ad.methods.parts.photographs import listing_digest

PARAMETERS = ("weights", "second_weights", "penalty_images")  # of methods: those that may name a file or a folder
_DIGITS = 16  # of 64: enough to tell files apart


def digests(named: Mapping[str, object]) -> dict[str, str]:
    """Of the values that are files or folders, by their keys: of a file's bytes, of names and sizes in a folder."""
    paths = {key: Path(value) for key, value in named.items() if isinstance(value, str) and Path(value).exists()}
    return {key: _digest(path, path.stat().st_mtime_ns) for key, path in paths.items()}


@functools.cache
def _digest(path: Path, modified_ns: int) -> str:
    if path.is_file():
        return sha256_file(path)[:_DIGITS]
    return listing_digest(path, sorted(file for file in path.rglob("*") if file.is_file()))[:_DIGITS]
