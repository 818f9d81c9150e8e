import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_runtime import manifest, signing, signing_keys
from millrace_runtime.content import ContentStore
from millrace_runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME, ManifestMismatch
from millrace_runtime.signing import INVALID, UNTRUSTED, SignatureRefused, Signer, Trust

KEY = signing.make_key()
SIGNER = Signer(KEY)
TRUST = Trust([KEY.public_key()])
DATASET = "sha256:" + "d" * 64


def committed(folder: Path, files: dict[str, bytes] | None = None) -> tuple[Path, str]:
    """A checkpoint that nobody has signed."""
    target = folder / "checkpoint"
    temporary = manifest.temporary_sibling(target)
    for name, content in (files or {"a.bin": b"weights", "deep/b": b"tokenizer"}).items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_bytes(content)
    metadata = {"dataset_digest": DATASET, "parent_checkpoint_digest": None}
    return target, manifest.commit(temporary, target, "checkpoint", metadata)


def signed(folder: Path) -> tuple[Path, str]:
    target, digest = committed(folder)
    SIGNER.sign(target)
    return target, digest


def check(directory: Path, digest: str, trust: Trust = TRUST) -> signing.Statement:
    """As readers do: every byte against the manifest, then the signature over its digest."""
    manifest.verify(directory, digest)
    return signing.verify((directory / SIGNATURE_NAME).read_bytes(), digest, trust)


def test_a_signature_names_the_directory_and_what_it_was_made_of(tmp_path: Path) -> None:
    directory, digest = signed(tmp_path)
    assert check(directory, digest) == signing.Statement("checkpoint", digest, (DATASET,))
    assert list(tmp_path.glob(f"{manifest.TEMPORARY_PREFIX}*")) == []


def test_the_openssf_tool_verifies_the_directory_and_refuses_a_flipped_byte(tmp_path: Path) -> None:
    directory, _ = signed(tmp_path)
    public = tmp_path / "public.pem"
    signing.write_public_key(KEY.public_key(), public)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(directory)]
    command += ["--signature", str(directory / SIGNATURE_NAME), "--public_key", str(public)]
    good = subprocess.run(command, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    (directory / "a.bin").write_bytes(b"Weights")
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode != 0
    assert "a.bin" in bad.stdout + bad.stderr


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory, digest = signed(tmp_path_factory.mktemp("signed"))
    names = [SIGNATURE_NAME, MANIFEST_NAME, "a.bin", "deep/b"]
    path = directory / data.draw(st.sampled_from(names))
    content = bytearray(path.read_bytes())
    # A signature's length is chance: what is drawn must not depend on it.
    bit = data.draw(st.integers(0, 2**16 - 1)) % (len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises((SignatureRefused, ManifestMismatch)):
        check(directory, digest)


def test_a_directory_that_was_made_anew_with_its_manifest_is_refused(tmp_path: Path) -> None:
    directory, _ = signed(tmp_path)
    forged, digest = committed(tmp_path / "forged", {"a.bin": b"backdoor"})
    (forged / SIGNATURE_NAME).write_bytes((directory / SIGNATURE_NAME).read_bytes())
    with pytest.raises(SignatureRefused) as refused:
        check(forged, digest)
    assert refused.value.reason == INVALID


def test_a_key_that_is_not_trusted_is_told_apart(tmp_path: Path) -> None:
    directory, digest = signed(tmp_path)
    other = Trust([signing.make_key().public_key()])
    with pytest.raises(SignatureRefused) as refused:
        check(directory, digest, other)
    assert refused.value.reason == UNTRUSTED


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"dsseEnvelope": 1}', b"null", b"[" * 100_000]
)
def test_a_file_that_is_no_signature_is_invalid(content: bytes) -> None:
    with pytest.raises(SignatureRefused) as refused:
        signing.verify(content, DATASET, TRUST)
    assert refused.value.reason == INVALID


def test_a_directory_is_signed_once_and_one_whose_signature_is_bad_again(tmp_path: Path) -> None:
    directory, digest = signed(tmp_path)
    path = directory / SIGNATURE_NAME
    first = path.read_bytes()
    SIGNER.sign(directory)
    assert path.read_bytes() == first
    path.write_bytes(first[: len(first) // 2])  # as by a process that was killed
    SIGNER.sign(directory)
    check(directory, digest)


def test_signatures_of_the_key_before_count_while_both_are_trusted(tmp_path: Path) -> None:
    directory, digest = signed(tmp_path)
    place = tmp_path / "trusted"
    place.mkdir()
    new = signing.make_key()
    signing.write_public_key(KEY.public_key(), place / "old.pem")
    signing.write_public_key(new.public_key(), place / "new.pem")
    check(directory, digest, Trust.of(place))
    Signer(new).sign(directory)
    check(directory, digest, Trust.of(place / "new.pem"))


def test_content_is_signed_when_it_is_published_and_its_digest_stays(tmp_path: Path) -> None:
    content = ContentStore(str(tmp_path / "data"), tmp_path / "cache", SIGNER.sign)
    directory, digest = committed(content.working_path("runs/r").parent)
    uri = content.publish(directory)
    assert content.directory(uri, digest) == directory
    assert signing.verify(content.signature(uri), digest, TRUST).digest == digest
    assert manifest.sha256_bytes(content.manifest_of(uri)) == digest


def test_the_signature_of_remote_content_is_read_beside_it(tmp_path: Path) -> None:
    content = ContentStore("memory://signed", tmp_path / "cache", SIGNER.sign)
    directory, digest = committed(content.working_path("runs/r").parent)
    uri = content.publish(directory)
    fetched = content.directory(uri, digest)
    assert fetched != directory
    assert signing.verify(content.signature(uri), digest, TRUST).parents == (DATASET,)
    assert manifest.sha256_bytes(content.manifest_of(uri)) == digest
    for read in (content.signature, content.manifest_of):
        with pytest.raises(FileNotFoundError):
            read(f"{uri}-gone")


def test_a_private_key_is_for_its_owner_alone_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    signing.write_private_key(KEY, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    directory, digest = committed(tmp_path)
    Signer.of(path).sign(directory)
    check(directory, digest)
    assert os.listdir(tmp_path).count("key.pem") == 1


def test_what_is_no_key_on_p256_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "key.pem"
    path.write_bytes(other.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none))
    with pytest.raises(signing.KeyFileInvalid, match="P-256"):
        Signer.of(path)
    path.write_text("no key")
    with pytest.raises(signing.KeyFileInvalid):
        Signer.of(path)
    with pytest.raises(signing.KeyFileInvalid):
        Trust.of(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(signing.KeyFileInvalid):
        Trust.of(tmp_path / "empty")


def test_what_was_committed_before_there_was_a_key_is_adopted(tmp_path: Path) -> None:
    old, digest = committed(tmp_path / "data" / "old")
    ready, ready_digest = signed(tmp_path / "data" / "ready")
    before = (ready / SIGNATURE_NAME).read_bytes()
    damaged, _ = committed(tmp_path / "data" / "damaged")
    (damaged / MANIFEST_NAME).write_text("{")
    manifest.temporary_sibling(tmp_path / "data" / "x")
    assert signing.adopt(tmp_path / "data", SIGNER) == 2
    check(old, digest)
    check(ready, ready_digest)
    assert (ready / SIGNATURE_NAME).read_bytes() == before
    assert not (damaged / SIGNATURE_NAME).exists()


def test_a_home_gets_one_key_and_what_was_there_before_is_signed_by_it(tmp_path: Path) -> None:
    old, digest = committed(tmp_path / "data")
    private, trusted = tmp_path / "signing-key.pem", tmp_path / "trusted"
    assert signing_keys.ensure(private, trusted, tmp_path / "data") == 1
    key = private.read_bytes()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    check(old, digest, Trust.of(trusted))
    late, _ = committed(tmp_path / "data" / "late")
    assert signing_keys.ensure(private, trusted, tmp_path / "data") == 0
    assert private.read_bytes() == key
    assert not (late / SIGNATURE_NAME).exists(), "what comes later, its stage signs"


def test_a_key_that_was_never_put_in_place_leaves_nothing_that_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, digest = committed(tmp_path / "data")
    private, trusted = tmp_path / "signing-key.pem", tmp_path / "trusted"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(signing, "write_private_key", killed)
        with pytest.raises(KeyboardInterrupt):
            signing_keys.ensure(private, trusted, tmp_path / "data")
    assert signing_keys.ensure(private, trusted, tmp_path / "data") == 1
    check(old, digest, Trust([Signer.of(private).public_key]))


def test_the_public_key_before_stays_trusted_when_another_follows(tmp_path: Path) -> None:
    private, trusted = tmp_path / "signing-key.pem", tmp_path / "trusted"
    signing_keys.ensure(private, trusted, None)
    directory, digest = committed(tmp_path)
    Signer.of(private).sign(directory)
    private.unlink()
    signing_keys.ensure(private, trusted, None)
    assert len(Trust.of(trusted).keys) == 2
    check(directory, digest, Trust.of(trusted))
