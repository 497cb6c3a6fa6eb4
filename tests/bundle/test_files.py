from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, tiny_manifest

from edge_ad.bundle import files
from edge_ad.bundle.files import file_entry, read_bundle, read_manifest, write_manifest
from edge_ad.bundle.manifest import FileEntry, Format
from edge_ad.errors import (
    BundleError,
    BundleNotFoundError,
    ChangedFileError,
    EscapingPathError,
    ExtraFileError,
    LinkedFileError,
    ManifestError,
    MissingFileError,
    UnknownSchemaError,
)

Write = Callable[..., Path]


def test_file_entry_is_what_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"abc" * 41)
    expected = FileEntry("a/b.bin", hashlib.sha256(b"abc" * 41).hexdigest(), 123)
    assert file_entry(tmp_path, "a/b.bin") == expected


@pytest.mark.parametrize("graph_format", Format)
def test_a_whole_bundle_is_read_wherever_it_lies(tiny_bundle: Write, tmp_path: Path, graph_format: Format) -> None:
    moved = tiny_bundle(graph_format=graph_format).rename(tmp_path / "elsewhere")
    bundle = read_bundle(moved)
    assert bundle.manifest.format is graph_format
    assert all(bundle.file(entry).is_file() for entry in bundle.manifest.files)
    write_manifest(moved, bundle.manifest)
    assert read_bundle(str(moved)) == bundle


def test_a_linked_folder_is_a_bundle_too(tiny_bundle: Write, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tiny_bundle())
    assert read_bundle(tmp_path / "latest").manifest.heads


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="gone is not a bundle: no such folder"):
        read_bundle(tmp_path / "gone")
    with pytest.raises(BundleNotFoundError, match=r"has no manifest.json$"):
        read_bundle(tmp_path)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(BundleNotFoundError, match="no such folder"):
        read_bundle(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"schema_version": 1', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": 1, "parity_tolerance": NaN}', "NaN is not a JSON number"),
        (b'{"schema_version": 1, "schema_version": 1}', "a name occurs twice"),
        (b"[]", "expected an object with schema_version"),
        (b'{"schema_version": 1}', "missing format, precision"),
    ],
)
def test_broken_manifests(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MANIFEST_MAX_BYTES", 10)
    (tmp_path / "manifest.json").write_text("x" * 11)
    with pytest.raises(ManifestError, match="11 bytes; a manifest has at most 10"):
        read_manifest(tmp_path)


def test_another_schema(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    edit_manifest(bundle, lambda value: value.update(schema_version=2))
    with pytest.raises(UnknownSchemaError, match="schema_version 2"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "path",
    ["../x", "graphs/../../x", "/etc/passwd", "C:x", "graphs\\x", "", ".", "graphs//x", "./x", "graphs/", "a\0b"],
)
def test_paths_that_leave_the_folder(tiny_bundle: Write, path: str) -> None:
    bundle = tiny_bundle()
    edit_manifest(bundle, lambda value: value["graphs"][1]["files"][0].update(path=path))
    with pytest.raises(EscapingPathError, match="may leave the bundle"):
        read_bundle(bundle)


def test_a_file_that_is_not_there(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    (bundle / "graphs" / "r01_c00.xml").unlink()
    with pytest.raises(MissingFileError, match=r"graphs/r01_c00.xml is named in the manifest but not there"):
        read_bundle(bundle)


def test_a_folder_in_place_of_a_file(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    (bundle / "golden" / "normal.png").unlink()
    (bundle / "golden" / "normal.png").mkdir()
    with pytest.raises(MissingFileError, match=r"golden/normal.png"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "graphs", "graphs/shared.bin"])
def test_links(tiny_bundle: Write, tmp_path: Path, name: str) -> None:
    bundle = tiny_bundle()
    outside = (bundle / name).rename(tmp_path / "outside")
    (bundle / name).symlink_to(outside)
    with pytest.raises(LinkedFileError, match=f"{name} is a symbolic link"):
        read_bundle(bundle)


def test_a_link_that_nobody_names(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    (bundle / "golden" / "loop").symlink_to(bundle)
    with pytest.raises(LinkedFileError, match="golden/loop"):
        read_bundle(bundle)


def test_changed_files(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    graph = bundle / "graphs" / "shared.xml"
    original = graph.read_bytes()
    graph.write_bytes(original + b"\n")
    for check_hashes in (True, False):
        with pytest.raises(ChangedFileError, match=rf"graphs/shared.xml has {len(original) + 1} bytes"):
            read_bundle(bundle, check_hashes=check_hashes)
    graph.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    with pytest.raises(ChangedFileError, match=r"graphs/shared.xml has another SHA-256"):
        read_bundle(bundle)
    assert read_bundle(bundle, check_hashes=False).path == bundle


@pytest.mark.parametrize("name", ["notes.txt", "graphs/r09_c09.xml", "golden/.DS_Store"])
def test_extra_files(tiny_bundle: Write, name: str) -> None:
    bundle = tiny_bundle()
    (bundle / name).write_text("x")
    with pytest.raises(ExtraFileError, match=f"{name} is not named in the manifest"):
        read_bundle(bundle)


def test_faults_are_reported_in_order(tiny_bundle: Write) -> None:
    """Each fault is added on top of the later ones and hides them."""
    bundle = tiny_bundle()
    seen = []
    faults: list[Callable[[], object]] = [
        lambda: (bundle / "extra").write_text("x"),
        lambda: (bundle / "golden" / "normal.png").write_bytes(b""),
        lambda: (bundle / "link").symlink_to("extra"),
        lambda: (bundle / "graphs" / "shared.bin").unlink(),
        lambda: edit_manifest(bundle, lambda value: value["graphs"][2]["files"][0].update(path="../x")),
        lambda: edit_manifest(bundle, lambda value: value.pop("merge")),
        lambda: (bundle / "manifest.json").unlink(),
    ]
    for fault in faults:
        fault()
        with pytest.raises(BundleError) as raised:
            read_bundle(bundle)
        seen.append(raised.type)
    assert seen == [
        ExtraFileError,
        ChangedFileError,
        LinkedFileError,
        MissingFileError,
        EscapingPathError,
        ManifestError,
        BundleNotFoundError,
    ]


def test_writing_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, tiny_manifest(parity_tolerance=float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_of_the_manifest_is_noticed(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    path, there = bundle / "manifest.json", read_manifest(bundle)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(BundleError):
            read_manifest(bundle)
    path.write_bytes(content)
    assert read_manifest(bundle) == there


def test_a_manifest_edited_by_hand_is_refused(tiny_bundle: Write) -> None:
    bundle = tiny_bundle()
    value = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(value, indent=7))  # spaced otherwise is nothing else
    assert read_manifest(bundle).to_json() == {key: part for key, part in value.items() if key != "digest"}
    value["normalisation"]["score"]["threshold"] += 1
    (bundle / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ChangedFileError, match=r"is not as it was written.*edge-ad threshold changes"):
        read_bundle(bundle)
    del value["digest"]
    (bundle / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ChangedFileError, match="its digest differs"):
        read_manifest(bundle)
