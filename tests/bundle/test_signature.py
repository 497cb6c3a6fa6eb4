"""Signatures against OpenSSL's own command and the vectors of RFC 8032."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from signing_keys import write_keys

import edge_ad
from edge_ad.bundle.files import SIGNATURE_NAME, read_bundle, read_manifest, sign_bundle
from edge_ad.bundle.signature import check_signature, sign
from edge_ad.errors import (
    BundleNotFoundError,
    ChangedFileError,
    ExtraMissingError,
    LinkedFileError,
    OutputWriteError,
    SigningKeyError,
    UnsignedBundleError,
    WrongSignatureError,
)

Write = Callable[..., Path]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "release")


def test_the_third_vector_of_rfc_8032(tmp_path: Path) -> None:
    secret = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    private, public = write_keys(tmp_path, "rfc", ed25519.Ed25519PrivateKey.from_private_bytes(secret))
    expected = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert sign(b"\xaf\x82", private) == expected
    (tmp_path / "signature").write_bytes(expected)
    check_signature(tmp_path / "signature", b"\xaf\x82", public)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_checks_the_signature(tiny_bundle: Write, tmp_path: Path) -> None:
    """The commands of the module's docstring."""

    def openssl(*arguments: object) -> str:
        run = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=True)
        return run.stdout

    bundle, key, public = tiny_bundle(), tmp_path / "release.key", tmp_path / "release.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", key)
    openssl("pkey", "-in", key, "-pubout", "-out", public)
    signature = sign_bundle(bundle, key)
    read_bundle(bundle, require_signature=public)
    files = ("-in", bundle / "manifest.json", "-sigfile", signature)
    assert "Success" in openssl("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, *files)


def test_a_signed_bundle_is_read_with_and_without_its_key(tiny_bundle: Write, keys: tuple[Path, Path]) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    assert sign_bundle(bundle, private) == bundle / SIGNATURE_NAME
    assert (bundle / SIGNATURE_NAME).stat().st_size == 64
    assert read_bundle(bundle) == read_bundle(bundle, require_signature=public)
    edge_ad.load(bundle, require_signature=str(public)).close()


def test_a_required_signature_is_the_owners_or_an_error(
    tiny_bundle: Write, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    other_private, other_public = write_keys(tmp_path, "other")
    with pytest.raises(
        UnsignedBundleError, match=r"a signature is required, and manifest.sig cannot be read \(No such"
    ):
        edge_ad.load(bundle, require_signature=public)
    sign_bundle(bundle, other_private)
    with pytest.raises(WrongSignatureError, match=r"not a signature of this manifest by the key .*release.pub"):
        edge_ad.load(bundle, require_signature=public)
    sign_bundle(bundle, private)  # replaces the other one
    edge_ad.load(bundle, require_signature=public).close()
    with pytest.raises(WrongSignatureError):
        read_manifest(bundle, require_signature=other_public)


def test_a_line_requires_a_signature_once_for_all(
    tiny_bundle: Write, tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    monkeypatch.setenv("EDGE_AD_REQUIRE_SIGNATURE", str(public))
    for read in (edge_ad.load, read_bundle, read_manifest):
        with pytest.raises(UnsignedBundleError):
            read(bundle)
    sign_bundle(bundle, private)  # what is signed here need not be signed
    edge_ad.load(bundle).close()
    assert read_bundle(bundle).manifest == read_manifest(bundle)
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(WrongSignatureError):  # the argument goes before the environment
        read_bundle(bundle, require_signature=other)


def test_every_byte_of_a_signed_manifest_counts(tiny_bundle: Write, keys: tuple[Path, Path]) -> None:
    """Also those that JSON does not see: a space more, another order."""
    bundle, (private, public) = tiny_bundle(), keys
    sign_bundle(bundle, private)
    manifest = bundle / "manifest.json"
    content = manifest.read_bytes()
    for changed in (content + b" ", content.replace(b"padim", b"PADIM"), b"", b"not even JSON"):
        manifest.write_bytes(changed)
        with pytest.raises(WrongSignatureError):
            read_bundle(bundle, require_signature=public)


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + b"\0", lambda s: b"", lambda s: s[::-1]])
def test_a_damaged_signature(tiny_bundle: Write, keys: tuple[Path, Path], change: Callable[[bytes], bytes]) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    signature = sign_bundle(bundle, private)
    signature.write_bytes(change(signature.read_bytes()))
    with pytest.raises(WrongSignatureError):
        read_bundle(bundle, require_signature=public)
    sign_bundle(bundle, private)
    read_bundle(bundle, require_signature=public)


def test_only_whole_bundles_are_signed(tiny_bundle: Write, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(BundleNotFoundError):
        sign_bundle(tmp_path / "nowhere", keys[0])
    bundle = tiny_bundle()
    weights = bundle / "graphs" / "shared.bin"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    with pytest.raises(ChangedFileError):
        sign_bundle(bundle, keys[0])
    assert not (bundle / SIGNATURE_NAME).exists()


def test_a_linked_signature(tiny_bundle: Write, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    sign_bundle(bundle, private).rename(tmp_path / "elsewhere.sig")
    (bundle / SIGNATURE_NAME).symlink_to(tmp_path / "elsewhere.sig")
    for refused in (lambda: read_bundle(bundle, require_signature=public), lambda: sign_bundle(bundle, private)):
        with pytest.raises(LinkedFileError, match=r"manifest.sig is a symbolic link"):
            refused()


def test_a_signature_that_cannot_be_written(tiny_bundle: Write, keys: tuple[Path, Path]) -> None:
    bundle = tiny_bundle()
    (bundle / SIGNATURE_NAME).mkdir()
    with pytest.raises(OutputWriteError, match=r"cannot write .*manifest.sig"):
        sign_bundle(bundle, keys[0])


def test_keys_that_are_none(tiny_bundle: Write, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    sign_bundle(bundle, private)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    wrong, locked, curve = tmp_path / "wrong.pem", tmp_path / "locked.pem", tmp_path / "curve.pem"
    wrong.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    passphrase = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, passphrase))
    other = ec.generate_private_key(ec.SECP256R1())
    curve.write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    for path in (tmp_path / "nowhere.pem", wrong, locked, curve, public, tmp_path):
        with pytest.raises(SigningKeyError, match=str(path)):
            sign_bundle(bundle, path)
    curve.write_bytes(other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    for path in (tmp_path / "nowhere.pem", wrong, private, curve):
        with pytest.raises(SigningKeyError, match=str(path)):
            read_bundle(bundle, require_signature=path)


def test_without_the_extra(tiny_bundle: Write, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    sign_bundle(bundle, private)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    for refused in (lambda: sign_bundle(bundle, private), lambda: read_bundle(bundle, require_signature=public)):
        with pytest.raises(ExtraMissingError, match=r"pip install '\.\[signing\]'"):
            refused()
    read_bundle(bundle)


def test_cryptography_is_imported_where_a_signature_is_required(tiny_bundle: Write, keys: tuple[Path, Path]) -> None:
    bundle, (private, public) = tiny_bundle(), keys
    sign_bundle(bundle, private)
    code = (
        "import sys; from pathlib import Path; from edge_ad.bundle.files import read_bundle; "
        "read_bundle(sys.argv[1], require_signature=next(map(Path, sys.argv[2:]), None)); "
        "print('cryptography' in sys.modules)"
    )
    for key, imported in ((), "False"), ((str(public),), "True"):
        run = subprocess.run(
            [sys.executable, "-c", code, str(bundle), *key], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == imported
