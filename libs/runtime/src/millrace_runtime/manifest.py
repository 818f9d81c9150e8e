"""Directories whose content is proven: a manifest names every file's size and sha256.

Datasets, checkpoints and artifacts are such directories. The manifest is written last and
its own sha256 is the directory's digest, so a digest identifies content, whatever the path.

Order of writes (design: durability): files into a temporary directory beside the target →
fsync every file → write and fsync the manifest → rename → fsync the parent. A crash leaves
either nothing visible or all of it; an abandoned temporary directory is swept by its owner.

    ManifestError
    ├── ManifestMissing   no manifest: the directory was never committed
    └── ManifestMismatch  a file is absent, added, or differs from what was committed

Only regular files count. A symbolic link is refused wherever it points: what it names can be
changed without the directory being touched. The signature of a directory (``signing``) lies in it
and is no part of it: it is written later, over the digest.
"""

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "model.sig"
SCHEMA = "millrace.manifest/v1"
TEMPORARY_PREFIX = ".tmp-"
_READ_SIZE_BYTES = 1 << 20


class ManifestError(Exception):
    """A directory is not what its manifest says."""


class ManifestMissing(ManifestError):
    """There is no manifest."""


class ManifestMismatch(ManifestError):
    """The content differs from the manifest, or the manifest from the expected digest."""


@dataclass(frozen=True)
class FileEntry:
    """One file: ``path`` relative to the directory, in POSIX form; ``sha256:`` + hex digest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a committed directory holds."""

    kind: str
    files: tuple[FileEntry, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys, no spaces): equal manifests have equal digests."""
        document = {
            "schema": SCHEMA,
            "kind": self.kind,
            "files": [asdict(entry) for entry in self.files],
            "metadata": self.metadata,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def sha256_file(path: Path) -> str:
    """``sha256:`` + hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_SIZE_BYTES):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def sha256_bytes(content: bytes) -> str:
    """``sha256:`` + hex digest of ``content``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def temporary_sibling(target: Path) -> Path:
    """Create an empty directory, unique to the caller, on the same filesystem as ``target``."""
    path = target.parent / f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex}"
    path.mkdir(parents=True)
    return path


def commit(temporary: Path, target: Path, kind: str, metadata: dict[str, Any]) -> str:
    """Make ``temporary`` durable and visible as ``target``; return the directory's digest.

    When ``target`` exists already with the same digest (the same work done twice), it stands
    and ``temporary`` is removed.

    Raises:
        ManifestMismatch: ``target`` exists with other content, or a link was written.
        OSError: the filesystem refused (no space, input/output error); nothing is visible.
    """
    manifest = Manifest(kind, _scan(temporary), metadata)
    for entry in manifest.files:
        fsync_path(temporary / entry.path)
    content = manifest.to_bytes()
    digest = sha256_bytes(content)
    write_durably(temporary / MANIFEST_NAME, content)
    for folder in sorted({(temporary / entry.path).parent for entry in manifest.files}):
        fsync_path(folder)
    fsync_path(temporary)
    if target.exists():
        verify(target, digest)
        remove_tree(temporary)
        return digest
    os.rename(temporary, target)
    fsync_path(target.parent)
    return digest


def read(directory: Path) -> tuple[Manifest, str]:
    """The manifest of ``directory`` and its digest, files not yet checked.

    Raises:
        ManifestMissing: the directory was never committed.
        ManifestMismatch: the manifest itself cannot be read.
    """
    path = directory / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestMissing(f"{directory} has no {MANIFEST_NAME}") from None
    except IsADirectoryError:
        raise ManifestMismatch(f"{path} is a directory") from None
    try:
        document = json.loads(content)
        files = tuple(FileEntry(**entry) for entry in document["files"])
        manifest = Manifest(document["kind"], files, document["metadata"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestMismatch(f"{path} is not a {SCHEMA} document: {error}") from error
    return manifest, sha256_bytes(content)


def verify(directory: Path, expected_digest: str) -> Manifest:
    """Check every byte of ``directory`` against its manifest, and that against ``expected_digest``.

    Raises:
        ManifestMissing, ManifestMismatch: naming the first file that is wrong, and how.
    """
    manifest, digest = read(directory)
    if digest != expected_digest:
        path = directory / MANIFEST_NAME
        raise ManifestMismatch(f"{path} is {digest}, not {expected_digest}")
    found = set(_relative_files(directory))
    _require_same_names(directory, {entry.path for entry in manifest.files}, found)
    for entry in manifest.files:
        _require_same_bytes(directory / entry.path, entry)
    return manifest


def _require_same_names(directory: Path, committed: set[str], found: set[str]) -> None:
    absent, added = sorted(committed - found), sorted(found - committed)
    wrong = [f"{name} is absent" for name in absent] + [f"{name} was added" for name in added]
    if wrong:
        raise ManifestMismatch(f"{directory}: {', '.join(wrong[:5])}")


def _require_same_bytes(path: Path, entry: FileEntry) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        how = f"it has {size_bytes} bytes, not {entry.size_bytes}"
        raise ManifestMismatch(f"{path} differs from its manifest: {how}")
    digest = sha256_file(path)
    if digest != entry.sha256:
        raise ManifestMismatch(
            f"{path} differs from its manifest: it is {digest}, not {entry.sha256}"
        )


def write_durably(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and fsync it."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def fsync_path(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(directory: Path) -> None:
    """Remove a directory and all in it; nothing happens when it is absent."""
    if directory.exists():
        shutil.rmtree(directory)


def _scan(directory: Path) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(name, (directory / name).stat().st_size, sha256_file(directory / name))
        for name in sorted(_relative_files(directory))
    )


def _relative_files(directory: Path) -> list[str]:
    """All files but the manifest and its signature.

    Raises:
        ManifestMismatch: there is something that is neither a file nor a directory.
    """
    found = (path.relative_to(directory).as_posix() for path in _files(directory))
    return [name for name in found if name not in (MANIFEST_NAME, SIGNATURE_NAME)]


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _files(Path(entry.path))
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise ManifestMismatch(f"{entry.path} is {kind}")
