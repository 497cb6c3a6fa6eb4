"""The files of a bundle: named in the manifest, written, read back, and proved to be the ones that were written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edge_ad.atomic import write_json
from edge_ad.bundle.manifest import FileEntry, Manifest
from edge_ad.errors import (
    BundleNotFoundError,
    ChangedFileError,
    EscapingPathError,
    ExtraFileError,
    LinkedFileError,
    ManifestError,
    MissingFileError,
)

MANIFEST_NAME = "manifest.json"
MANIFEST_MAX_BYTES = 16_000_000


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk that has passed `read_bundle`."""

    path: Path
    manifest: Manifest

    def file(self, entry: FileEntry) -> Path:
        """Where ``entry`` lies."""
        return self.path / entry.path


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(root: Path, relative: str) -> FileEntry:
    """The entry of the file ``relative`` (forward slashes) below ``root``, as it is on disk."""
    path = Path(root) / relative
    return FileEntry(relative, sha256_file(path), path.stat().st_size)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``root/manifest.json``, atomically. Raises `OutputWriteError`."""
    write_json(Path(root) / MANIFEST_NAME, manifest.to_json())


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle folder ``path``, without a look at the other files.

    Raises:
        BundleNotFoundError: ``path`` is not a folder with a manifest.json in it.
        LinkedFileError: manifest.json is a symbolic link.
        ManifestError: too large, not JSON, or a field is missing, unknown or of the wrong type.
        UnknownSchemaError: written for another release.
    """
    path = Path(path)
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise BundleNotFoundError(f"{path} is not a bundle: no such folder")
    if not file.is_file():
        raise BundleNotFoundError(f"{path} is not a bundle: it has no {MANIFEST_NAME}")
    if file.is_symlink():
        raise LinkedFileError(f"{file} is a symbolic link; copy the bundle with its files, not with links")
    size_bytes = file.stat().st_size
    if size_bytes > MANIFEST_MAX_BYTES:
        raise ManifestError(f"{file}: {size_bytes} bytes; a manifest has at most {MANIFEST_MAX_BYTES}")
    try:
        value = json.loads(file.read_bytes(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also text that is not UTF-8
        raise ManifestError(f"{file}: not valid JSON: {error}") from error
    return Manifest.from_json(value)


def read_bundle(path: Path | str, *, check_hashes: bool = True) -> Bundle:
    """The bundle in the folder ``path``, once everything in it is as its manifest says.

    Args:
        path: the bundle's folder; it may itself be reached through a link.
        check_hashes: compare SHA-256 sums too; without, names and sizes only.

    Raises, checked in this order:
        BundleNotFoundError, LinkedFileError (of the manifest), ManifestError, UnknownSchemaError: see `read_manifest`.
        EscapingPathError: the manifest names a path outside the folder.
        MissingFileError: a named file is not there.
        LinkedFileError: a file or folder inside is a symbolic link.
        ChangedFileError: size or SHA-256 of a file differs.
        ExtraFileError: a file the manifest does not name.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for entry in manifest.files:
        _check_inside(entry.path)
    for entry in manifest.files:
        if not (path / entry.path).is_file():
            raise MissingFileError(f"{path}: {entry.path} is named in the manifest but not there; copy the bundle anew")
    found = _walk(path)
    for entry in manifest.files:
        _check_unchanged(path, entry, check_hashes)
    if extra := sorted(found - {entry.path for entry in manifest.files} - {MANIFEST_NAME}):
        raise ExtraFileError(f"{path}: {extra[0]} is not named in the manifest ({len(extra)} such); remove it")
    return Bundle(path, manifest)


def _check_inside(relative: str) -> None:
    parts = relative.split("/")
    # A backslash or a drive ("C:x") means something else on Windows than here.
    if any(part in ("", ".", "..") for part in parts) or any(sign in relative for sign in "\\:\0"):
        raise EscapingPathError(
            f"{MANIFEST_NAME}: path {relative!r} may leave the bundle; expected a relative path with forward slashes"
        )


def _walk(root: Path) -> set[str]:
    """Relative paths of all files below ``root``; raises `LinkedFileError` at the first link."""
    files = set()
    for folder, folder_names, file_names in os.walk(root):
        for name in (*folder_names, *file_names):
            path = Path(folder, name)
            if path.is_symlink():
                raise LinkedFileError(
                    f"{root}: {path.relative_to(root).as_posix()} is a symbolic link; "
                    "copy the bundle with its files, not with links"
                )
        files |= {Path(folder, name).relative_to(root).as_posix() for name in file_names}
    return files


def _check_unchanged(root: Path, entry: FileEntry, check_hash: bool) -> None:
    path = root / entry.path
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        raise ChangedFileError(
            f"{root}: {entry.path} has {size_bytes} bytes, the manifest says {entry.size_bytes}; copy the bundle anew"
        )
    if check_hash and sha256_file(path) != entry.sha256:
        raise ChangedFileError(f"{root}: {entry.path} has another SHA-256 than the manifest says; copy the bundle anew")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a name occurs twice in one object: {sorted(key for key, _ in pairs)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
