"""The bytes of uploaded files: hashed while they come in, kept once for each digest.

A file lies at ``files/<sha256>`` of the content store, whoever uploaded it. Bytes on their way
in are in ``files/.tmp-…`` beside it, so that putting them in place is one rename.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace_data.app import StagedFile
from millrace_data.domain import Content
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.errors import FailedPrecondition, InvalidArgument
from millrace_runtime.manifest import TEMPORARY_PREFIX, ManifestMismatch, fsync_path

CHUNK_BYTES = 256 * 1024
_FOLDER = "files"


class FileBytes:
    """Where the bytes of files are put, read and removed."""

    def __init__(self, content: ContentStore, maximum_bytes: int) -> None:
        self._content = content
        self._maximum_bytes = maximum_bytes

    @contextmanager
    def staged(self, chunks: Iterable[bytes]) -> Iterator[StagedFile]:
        """Take in ``chunks``; what is not put in place inside the block is removed after it.

        Raises:
            InvalidArgument: FILE_TOO_LARGE, FILE_EMPTY.
            OSError: the disk is full or fails (``millrace_runtime.storage``); nothing is kept.
        """
        name = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        path = self._content.working_path(f"{_FOLDER}/{name}")
        try:
            yield take_in(path, chunks, self._maximum_bytes, "file")
        finally:
            path.unlink(missing_ok=True)

    def put_in_place(self, staged: StagedFile) -> str:
        """Make the bytes readable under their digest; return their URI."""
        path = self._path(staged.digest)
        staged.path.rename(path)
        fsync_path(path.parent)
        return self._content.publish(path)

    def read(self, content: Content) -> Iterator[bytes]:
        """The bytes, in chunks, once all of them were checked against their digest.

        Raises:
            FailedPrecondition: CONTENT_DAMAGED.
        """
        return chunks_of(self.open(content))

    def open(self, content: Content) -> Path:
        """A local path of the bytes, checked against their digest.

        Raises:
            FailedPrecondition: CONTENT_DAMAGED.
        """
        return verified(self._content, content)

    def remove(self, digest: str) -> None:
        """Remove the bytes; nothing happens when they are not there."""
        self._content.remove(self._relative(digest))

    def sweep(self, older_than_seconds: float) -> None:
        """Remove what uploads left behind when their service was killed."""
        before = time.time() - older_than_seconds
        folder = self._content.working_path(f"{_FOLDER}/any").parent
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._content.working_path(self._relative(digest))

    def _relative(self, digest: str) -> str:
        return f"{_FOLDER}/{digest.removeprefix('sha256:')}"


def take_in(path: Path, chunks: Iterable[bytes], maximum_bytes: int, what: str) -> StagedFile:
    """Write ``chunks`` to the new file ``path``, durably; ``what`` names them in errors.

    Raises:
        InvalidArgument: FILE_TOO_LARGE, FILE_EMPTY, or PART_… of a part.
        OSError: the disk is full or fails.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("xb") as stream:
        for chunk in chunks:
            size_bytes += len(chunk)
            if size_bytes > maximum_bytes:
                raise InvalidArgument(
                    f"the {what} is larger than {maximum_bytes} bytes; split it",
                    reason=f"{what.upper()}_TOO_LARGE",
                    field=what,
                )
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if not size_bytes:
        raise InvalidArgument(f"the {what} is empty", reason=f"{what.upper()}_EMPTY", field=what)
    return StagedFile(path, f"sha256:{digest.hexdigest()}", size_bytes)


def verified(store: ContentStore, content: Content) -> Path:
    """A local path of stored bytes, checked against their digest.

    Raises:
        FailedPrecondition: CONTENT_DAMAGED.
    """
    try:
        return store.file(content.uri, content.digest)
    except (ManifestMismatch, ContentOutsideRoot, FileNotFoundError) as error:
        raise FailedPrecondition(
            f"the stored bytes are no longer those that were uploaded ({content.digest}); "
            "upload the file again",
            reason="CONTENT_DAMAGED",
        ) from error


def chunks_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, never many of them at a time."""
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
