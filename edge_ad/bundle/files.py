"""The files of a bundle: named in the manifest, written, read back, and proved to be the ones that were written.

The manifest's own ``digest`` tells a flipped bit or an edit by hand: it is no secret, so it stops nobody who means to
change a bundle. For that a bundle may be signed: ``manifest.sig`` holds the Ed25519 signature of manifest.json, which
holds the hashes of all other files (`edge_ad.bundle.signature`). It is the one file that the manifest does not name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_ad.atomic import staged_folder, write_json
from edge_ad.bundle.graph_files import GraphFiles, check_graph, read_array
from edge_ad.bundle.manifest import FileEntry, Format, Graph, Manifest
from edge_ad.errors import (
    BundleNotFoundError,
    ChangedFileError,
    EscapingPathError,
    ExtraFileError,
    LinkedFileError,
    ManifestError,
    MissingFileError,
    OutputWriteError,
)
from edge_ad.workers import Workers

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
ROI_NAME = "roi.png"
SIGNATURE_VARIABLE = "EDGE_AD_REQUIRE_SIGNATURE"
MANIFEST_MAX_BYTES = 4_000_000  # ten thousand heads; parsed, JSON takes up to thirty times its size
DIGEST_LENGTH = 16  # of 64 digits: enough to tell bundles apart
HASHING_THREADS = 4  # hashlib lets others run meanwhile


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk that has passed `read_bundle`."""

    path: Path
    manifest: Manifest
    manifest_digest: str  # the first digits of the manifest's

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
    """Write ``root/manifest.json`` with its digest, atomically. Raises `OutputWriteError`."""
    write_json(Path(root) / MANIFEST_NAME, with_digest(manifest.to_json()))


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest's plain ``value`` as it is stored: with the SHA-256 of everything else in it, however it is spaced."""
    return {**value, "digest": _digest(value)}


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def staged_bundle(path: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """`staged_folder` for a new bundle. With ``overwrite`` it may replace another one, or an empty folder."""
    return staged_folder(path, replaces=MANIFEST_NAME if overwrite else None)


def required_signature(given: Path | str | None = None) -> Path | None:
    """File of the public key by which bundles must be signed: ``given``, else what the environment says, else None.

    ``EDGE_AD_REQUIRE_SIGNATURE=release.pub`` makes a line require it once for all.
    """
    required = given or os.environ.get(SIGNATURE_VARIABLE)
    return Path(required) if required else None


def read_manifest(path: Path, *, require_signature: Path | str | None = None) -> Manifest:
    """The manifest of the bundle folder ``path``, without a look at the other files.

    Args:
        path: the bundle's folder.
        require_signature: file of the public key by which the manifest must be signed; None: see `required_signature`.

    Raises:
        BundleNotFoundError: ``path`` is not a folder with a manifest.json in it.
        LinkedFileError: manifest.json is a symbolic link.
        UnsignedBundleError, WrongSignatureError, SigningKeyError, ExtraMissingError: see `check_signature`.
        ManifestError: too large, not JSON, or a field is missing, unknown or of the wrong type.
        UnknownSchemaError: written for another release.
        ChangedFileError: its values are not those that were written.
    """
    return _read_manifest(Path(path), required_signature(require_signature))[0]


def _read_manifest(path: Path, key: Path | None) -> tuple[Manifest, str]:
    """The manifest and the first digits of its digest; see `read_manifest`."""
    file = path / MANIFEST_NAME
    if not path.is_dir():
        raise BundleNotFoundError(f"{path} is not a bundle: no such folder")
    if not file.is_file():
        is_run = (path / "run.json").is_file()
        remedy = "; it is a run: make a bundle of it with edge-ad export" if is_run else ""
        raise BundleNotFoundError(f"{path} is not a bundle: it has no {MANIFEST_NAME}{remedy}")
    if file.is_symlink():
        raise LinkedFileError(f"{file} is a symbolic link; copy the bundle with its files, not with links")
    size_bytes = file.stat().st_size
    if size_bytes > MANIFEST_MAX_BYTES:
        raise ManifestError(f"{file}: {size_bytes} bytes; a manifest has at most {MANIFEST_MAX_BYTES}")
    content = _read(file, MANIFEST_MAX_BYTES).tobytes()
    if key is not None:
        # Only here: an edge box that asks for no signature needs no cryptography package
        from edge_ad.bundle.signature import check_signature

        check_signature(path / SIGNATURE_NAME, content, key)
    try:
        value = json.loads(content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also text that is not UTF-8
        raise ManifestError(f"{file}: not valid JSON: {error}") from error
    stated = value.pop("digest", None) if isinstance(value, dict) else None
    manifest = Manifest.from_json(value)
    digest = _digest(value)
    if stated != digest:
        raise ChangedFileError(
            f"{file} is not as it was written, its digest differs; copy the bundle anew, or export it again "
            "(edge-ad threshold changes thresholds)"
        )
    return manifest, digest[:DIGEST_LENGTH]


def read_bundle(path: Path | str, *, check_hashes: bool = True, require_signature: Path | str | None = None) -> Bundle:
    """The bundle in the folder ``path``, once everything in it is as its manifest says.

    Args:
        path: the bundle's folder; it may itself be reached through a link.
        check_hashes: compare SHA-256 sums too; without, names and sizes only.
        require_signature: see `read_manifest`.

    Raises, checked in this order:
        BundleNotFoundError, LinkedFileError (of the manifest), the errors of a required signature, ManifestError,
        UnknownSchemaError, ChangedFileError (of the manifest): see `read_manifest`.
        EscapingPathError: the manifest names a path outside the folder.
        MissingFileError: a named file is not there.
        LinkedFileError: a file or folder inside is a symbolic link.
        ChangedFileError: size or SHA-256 of a file differs.
        ExtraFileError: a file the manifest does not name.
    """
    return _read_bundle(Path(path), check_hashes, required_signature(require_signature))


def _read_bundle(path: Path, check_hashes: bool, key: Path | None) -> Bundle:
    manifest, manifest_digest = _read_manifest(path, key)
    for entry in manifest.files:
        _check_inside(entry.path)
    for entry in manifest.files:
        if not (path / entry.path).is_file():
            raise MissingFileError(f"{path}: {entry.path} is named in the manifest but not there; copy the bundle anew")
    found = _walk(path)
    for entry in manifest.files:
        _check_size(path, entry, (path / entry.path).stat().st_size)
    if check_hashes:
        check_unchanged(path, manifest.files)
    named = {entry.path for entry in manifest.files} | {MANIFEST_NAME, SIGNATURE_NAME}
    if extra := sorted(found - named):
        raise ExtraFileError(f"{path}: {extra[0]} is not named in the manifest ({len(extra)} such); remove it")
    return Bundle(path, manifest, manifest_digest)


def sign_bundle(path: Path, key: Path) -> Path:
    """Write the signature of the bundle in ``path`` by the private key in the file ``key``, and return its file.

    It need not be signed yet, whatever the environment requires. An earlier signature is replaced, in place: a
    half-written one is refused like any wrong one, while a temporary file left behind by a power cut would make the
    bundle one with an extra file.

    Raises:
        BundleError: the bundle is not whole or was changed: see `read_bundle`.
        SigningKeyError, ExtraMissingError: see `edge_ad.bundle.signature.sign`.
        OutputWriteError: the signature cannot be written.
    """
    from edge_ad.bundle.signature import sign

    path = Path(path)
    _read_bundle(path, check_hashes=True, key=None)
    file = path / SIGNATURE_NAME
    if file.is_symlink():
        raise LinkedFileError(f"{file} is a symbolic link; remove it")
    signature = sign((path / MANIFEST_NAME).read_bytes(), Path(key))
    try:
        with file.open("wb") as target:
            target.write(signature)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise OutputWriteError(f"cannot write {file}: {error.strerror or error}; sign the bundle again") from error
    return file


def check_unchanged(root: Path, entries: Iterable[FileEntry]) -> None:
    """Compare the SHA-256 sums of ``entries`` below ``root``, in threads. Raises `ChangedFileError`."""

    def check(entry: FileEntry) -> None:
        _check_sum(root, entry, sha256_file(root / entry.path))

    with closing(Workers(HASHING_THREADS, "edge-ad-hashing")) as threads:
        for checked in [threads.submit(partial(check, entry)) for entry in entries]:
            checked.result()


def read_graph(root: Path, graph: Graph, graph_format: Format) -> GraphFiles:
    """The bytes of ``graph`` as they lie below ``root``, which are those that the manifest names.

    Raises:
        MissingFileError: a file cannot be read.
        ChangedFileError: size or SHA-256 differs.
        GraphFormatError: see `check_graph`.
    """
    model, *weights = [read_entry(root, entry) for entry in graph.files]
    return check_graph(GraphFiles(Path(graph.files[0].path).name, model.tobytes(), *weights), graph_format)


def read_entry(root: Path, entry: FileEntry) -> NDArray[np.uint8]:
    """The bytes of one file, uint8 (bytes,), as they lie below ``root``, which are those that the manifest names.

    Raises:
        MissingFileError: it cannot be read.
        ChangedFileError: size or SHA-256 differs.
    """
    content = _read(root / entry.path, entry.size_bytes)
    _check_size(root, entry, len(content))
    _check_sum(root, entry, hashlib.sha256(content.data).hexdigest())
    return content


def _read(path: Path, most_bytes: int) -> NDArray[np.uint8]:
    """The file's bytes; where there are more than ``most_bytes``, one more than that."""
    try:
        return read_array(path, most_bytes + 1)
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read: {error.strerror or error}; copy the bundle anew") from error


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


def _check_size(root: Path, entry: FileEntry, size_bytes: int) -> None:
    if size_bytes != entry.size_bytes:
        raise ChangedFileError(
            f"{root}: {entry.path} has {size_bytes} bytes, the manifest says {entry.size_bytes}; copy the bundle anew"
        )


def _check_sum(root: Path, entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise ChangedFileError(f"{root}: {entry.path} has another SHA-256 than the manifest says; copy the bundle anew")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a name occurs twice in one object: {sorted(key for key, _ in pairs)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
