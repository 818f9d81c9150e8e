"""Signatures of committed directories: who made a dataset, a checkpoint or an artifact, of what.

``model.sig`` beside a manifest is a Sigstore bundle around a DSSE envelope around an in-toto
statement, as the OpenSSF's model signing 1.x writes it; ``model_signing verify key`` verifies the
whole directory. The statement names every file with its sha256, ``manifest.json`` among them, whose
sha256 is the directory's digest. So to verify a signature over a digest no file is hashed: that is
``manifest.verify``'s. Beyond what model signing asks for, the predicate's ``millrace`` names the
parents: the dataset of a checkpoint, the checkpoint of an artifact.

Keys are ECDSA on P-256, in PEM. A bundle is read strictly: one that is not byte for byte as it
would be written is refused, so that no byte of the file can be changed.

    https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    https://docs.sigstore.dev/about/bundle/
    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from millrace_runtime import manifest
from millrace_runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest

MISSING = "SIGNATURE_MISSING"
UNTRUSTED = "SIGNATURE_UNTRUSTED"
INVALID = "SIGNATURE_INVALID"

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_ECDSA = ec.ECDSA(hashes.SHA256())
# What a manifest's metadata calls that which the directory was made of.
_PARENTS = ("checkpoint_digest", "dataset_digest", "parent_checkpoint_digest", "parent")


class SignatureRefused(Exception):
    """``reason`` is ``MISSING``, ``UNTRUSTED`` or ``INVALID``; the text says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KeyFileInvalid(ValueError):
    """A file holds no ECDSA key on P-256, or a place that is to hold keys holds none."""


@dataclass(frozen=True)
class Statement:
    """What was signed.

    Attributes:
        kind: the manifest's.
        digest: of the directory, as ``manifest.read`` gives it.
        parents: digests of what the directory was made of.
    """

    kind: str
    digest: str
    parents: tuple[str, ...]


class Signer:
    """Signs with one private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key()

    @classmethod
    def of(cls, path: Path) -> "Signer":
        """
        Raises:
            KeyFileInvalid
            OSError: the file cannot be read.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise KeyFileInvalid(f"{path} holds no private key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p256(key.public_key()):
            raise KeyFileInvalid(f"{path} holds no ECDSA key on P-256")
        return cls(key)

    def sign(self, directory: Path) -> None:
        """Sign a committed directory; nothing happens where this key's signature is there.

        The signature is visible whole or not at all, and is not part of the directory's digest.

        Raises:
            ManifestError: it was never committed, or its manifest cannot be read.
            OSError: the filesystem refused.
        """
        found, digest = manifest.read(directory)
        path = directory / SIGNATURE_NAME
        try:
            if verify(path.read_bytes(), digest, Trust([self.public_key])) == _said(found, digest):
                return
        except (FileNotFoundError, SignatureRefused):
            pass
        temporary = manifest.temporary_sibling(directory)
        try:
            manifest.write_durably(temporary / SIGNATURE_NAME, self.bundle(found, digest))
            os.replace(temporary / SIGNATURE_NAME, path)
        finally:
            manifest.remove_tree(temporary)
        manifest.fsync_path(directory)

    def bundle(self, content: Manifest, digest: str) -> bytes:
        """The signature's file over a manifest and its digest."""
        payload = _canonical(_statement(content, digest))
        signature = self._key.sign(_pre_authentication_encoding(payload), _ECDSA)
        return _bundle(payload, signature, hint_of(self.public_key))


class Trust:
    """Public keys whose signatures count."""

    def __init__(self, keys: Iterable[ec.EllipticCurvePublicKey]) -> None:
        self.keys = {hint_of(key): key for key in keys}

    @classmethod
    def of(cls, place: Path) -> "Trust":
        """The keys of a PEM file, or of every ``*.pem`` in a directory: several while one key
        follows another.

        Raises:
            KeyFileInvalid: one is no such key, or there is none.
            OSError: they cannot be read.
        """
        paths = sorted(place.glob("*.pem")) if place.is_dir() else [place]
        if not paths:
            raise KeyFileInvalid(f"there is no key (*.pem) in {place}")
        return cls(_public_key(path) for path in paths)


def verify(content: bytes, digest: str, trust: Trust) -> Statement:
    """What the signature in a file's ``content`` says of the directory with ``digest``.

    Raises:
        SignatureRefused: UNTRUSTED: of a key that is not trusted; INVALID: it was changed, or is
            of another directory.
    """
    payload, signature, hint = _read_bundle(content)
    key = trust.keys.get(hint)
    if key is None:
        raise SignatureRefused(UNTRUSTED, f"it is of the key {hint[:16]}…, which is not trusted")
    try:
        key.verify(signature, _pre_authentication_encoding(payload), _ECDSA)
    except InvalidSignature:
        raise SignatureRefused(INVALID, "it was changed after it was signed") from None
    statement = _read_statement(payload)
    if statement.digest != digest:
        raise SignatureRefused(INVALID, f"it is of {statement.digest}, not of {digest}")
    return statement


def hint_of(key: ec.EllipticCurvePublicKey) -> str:
    """How a bundle names the key it is of: the sha256 of its PEM, in hex."""
    return hashlib.sha256(_pem(key)).hexdigest()


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def write_private_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Put a key where only its owner may read it; whole or not at all."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _place(path, pem)


def write_public_key(key: ec.EllipticCurvePublicKey, path: Path) -> None:
    _place(path, _pem(key))
    path.chmod(0o644)


def adopt(root: Path, signer: Signer) -> int:
    """Sign all directories below ``root`` that were committed before there was a key.

    Returns:
        How many there are. Each is signed as its manifest has it: whoever wrote its digest down
        still finds out whether it was changed before.
    """
    count = 0
    for path in sorted(root.rglob(MANIFEST_NAME)):
        if any(part.startswith(manifest.TEMPORARY_PREFIX) for part in path.parts):
            continue
        try:
            signer.sign(path.parent)
        except manifest.ManifestError:
            continue  # damaged: its readers refuse it anyway
        count += 1
    return count


def _statement(content: Manifest, digest: str) -> dict[str, Any]:
    resources = {entry.path: entry.sha256 for entry in content.files} | {MANIFEST_NAME: digest}
    digests = {name: _hex(resources[name]) for name in sorted(resources)}
    whole = hashlib.sha256(b"".join(bytes.fromhex(each) for each in digests.values()))
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": content.kind, "digest": {"sha256": whole.hexdigest()}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_NAME],
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": each}
                for name, each in digests.items()
            ],
            "millrace": {"kind": content.kind, "parents": list(parents_of(content.metadata))},
        },
    }


def parents_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of what a directory was made of, as its manifest's metadata names them."""
    return tuple(str(metadata[name]) for name in _PARENTS if metadata.get(name))


def _said(content: Manifest, digest: str) -> Statement:
    return Statement(content.kind, digest, parents_of(content.metadata))


def _read_statement(payload: bytes) -> Statement:
    try:
        document = json.loads(payload)
        predicate = document["predicate"]
        if (document["_type"], document["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
            raise ValueError(f"it is a {document['predicateType']}")
        digests = {each["name"]: each["digest"] for each in predicate["resources"]}
        own = predicate["millrace"]
        parents = tuple(str(parent) for parent in own["parents"])
        return Statement(str(own["kind"]), f"sha256:{digests[MANIFEST_NAME]}", parents)
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureRefused(INVALID, f"it is of no committed directory: {error!r}") from error


def _bundle(payload: bytes, signature: bytes, hint: str) -> bytes:
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return _canonical(document)


def _read_bundle(content: bytes) -> tuple[bytes, bytes, str]:
    """Payload, signature and the key's hint.

    Raises:
        SignatureRefused: INVALID.
    """
    try:
        document = json.loads(content)
        envelope = document["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        hint = str(document["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise SignatureRefused(INVALID, f"it cannot be read: {error!r}") from error
    if _bundle(payload, signature, hint) != content:
        raise SignatureRefused(INVALID, "it is not as it was written")
    return payload, signature, hint


def _pre_authentication_encoding(payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (
        len(_PAYLOAD_TYPE),
        _PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise KeyFileInvalid(f"{path} holds no public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_p256(key):
        raise KeyFileInvalid(f"{path} holds no ECDSA key on P-256")
    return key


def _is_p256(key: ec.EllipticCurvePublicKey) -> bool:
    return isinstance(key.curve, ec.SECP256R1)


def _place(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    manifest.fsync_path(path.parent)
