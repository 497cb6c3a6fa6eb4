"""Who released this bundle? An Ed25519 signature (RFC 8032) of manifest.json, which holds the hashes of all others.

``manifest.sig`` is the bare signature, 64 bytes, of the manifest's bytes as they lie on disk: OpenSSL checks it too.
Keys are PEM files without a passphrase; OpenSSL makes them::

    openssl genpkey -algorithm ed25519 -out release.key
    openssl pkey -in release.key -pubout -out release.pub
    openssl pkeyutl -verify -rawin -pubin -inkey release.pub -in manifest.json -sigfile manifest.sig

The only module that imports cryptography, and only where something is signed or a signature is required.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_ad.errors import (
    ExtraMissingError,
    LinkedFileError,
    SigningKeyError,
    UnsignedBundleError,
    WrongSignatureError,
    pip_install,
)

SIGNATURE_BYTES = 64
KEY_MAX_BYTES = 10_000  # a PEM file of such a key has about 120


def sign(content: bytes, key: Path) -> bytes:
    """The signature of ``content`` by the private key in the file ``key``.

    Raises:
        SigningKeyError: ``key`` is no private Ed25519 key.
        ExtraMissingError: the signing extra is not installed.
    """
    signature: bytes = _private_key(key).sign(content)
    return signature


def check_signature(path: Path, content: bytes, key: Path) -> None:
    """See that the file ``path`` holds the signature of ``content`` by the key whose public half is the file ``key``.

    Raises:
        UnsignedBundleError: there is no such file.
        WrongSignatureError: it holds something else.
        LinkedFileError: it is a symbolic link.
        SigningKeyError: ``key`` is no public Ed25519 key.
        ExtraMissingError: the signing extra is not installed.
    """
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    if path.is_symlink():
        raise LinkedFileError(f"{path} is a symbolic link; copy the bundle with its files, not with links")
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except OSError as error:
        raise UnsignedBundleError(
            f"{path.parent}: a signature is required, and {path.name} cannot be read ({error.strerror or error}); "
            "get a signed copy, or sign it: edge-ad sign"
        ) from error
    try:
        public.verify(signature, content)
    except InvalidSignature as error:
        raise WrongSignatureError(
            f"{path.parent}: {path.name} is not a signature of this manifest by the key {key}; do not run this bundle"
        ) from error


def _private_key(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    key = _load(path, lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: not an Ed25519 key; make one: openssl genpkey -algorithm ed25519 -out FILE")
    return key


def _public_key(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    key = _load(path, serialization.load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SigningKeyError(f"{path}: not the public half of an Ed25519 key")
    return key


def _load(path: Path, load: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        with path.open("rb") as file:
            return load(file.read(KEY_MAX_BYTES))
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key has a passphrase
        raise SigningKeyError(f"{path}: not such a key in PEM format, without a passphrase: {error}") from error


def _cryptography() -> tuple[Any, Any]:
    """Its modules for PEM files and for Ed25519."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ExtraMissingError(
            f"signatures need the package cryptography, which cannot be imported ({error}); {pip_install('signing')}"
        ) from error
    return serialization, ed25519
