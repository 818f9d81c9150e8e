"""The bytes of uploads' parts: kept until their upload has ended.

A part lies at ``uploads/<upload>/<part>`` of the content store; bytes on their way in are in
``.tmp-…`` beside it. A whole upload is removed at once, with whatever lies there.
"""

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace_data.app import StagedFile
from millrace_data.domain import Content
from millrace_data.file_bytes import chunks_of, take_in, verified
from millrace_runtime.content import ContentStore
from millrace_runtime.manifest import TEMPORARY_PREFIX, fsync_path, remove_tree

MAXIMUM_PART_BYTES = 64 * 2**20
_FOLDER = "uploads"


class PartBytes:
    """Where the bytes of parts are put, read and removed."""

    def __init__(self, content: ContentStore, maximum_bytes: int = MAXIMUM_PART_BYTES) -> None:
        self._content = content
        self._maximum_bytes = maximum_bytes

    @contextmanager
    def staged(self, upload_id: str, chunks: Iterable[bytes]) -> Iterator[StagedFile]:
        """Take in ``chunks``; what is not put in place inside the block is removed after it.

        Raises:
            InvalidArgument: PART_TOO_LARGE, PART_EMPTY.
            OSError: the disk is full or fails; nothing is kept.
        """
        path = self._path(upload_id, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            yield take_in(path, chunks, self._maximum_bytes, "part")
        finally:
            path.unlink(missing_ok=True)

    def put_in_place(self, upload_id: str, part_id: str, staged: StagedFile) -> str:
        """Make the bytes readable as a part; return their URI."""
        path = self._path(upload_id, part_id)
        staged.path.rename(path)
        fsync_path(path.parent)
        fsync_path(path.parent.parent)  # the upload's folder may be new
        return self._content.publish(path)

    def read(self, content: Content) -> Iterator[bytes]:
        """The bytes, in chunks, once all of them were checked against their digest.

        Raises:
            FailedPrecondition: CONTENT_DAMAGED.
        """
        return chunks_of(verified(self._content, content))

    def remove_part(self, upload_id: str, part_id: str) -> None:
        self._content.remove(f"{_FOLDER}/{upload_id}/{part_id}")

    def remove(self, upload_id: str) -> None:
        """Remove all parts of an upload; nothing happens when there are none."""
        self._content.remove(f"{_FOLDER}/{upload_id}")

    def sweep(self, older_than_seconds: float) -> None:
        """Remove here what is older than any upload gets: another process removed the rest."""
        before = time.time() - older_than_seconds
        folder = self._content.working_path(f"{_FOLDER}/any").parent
        for path in folder.iterdir():
            if path.stat().st_mtime < before:
                remove_tree(path)

    def _path(self, upload_id: str, part: str) -> Path:
        return self._content.working_path(f"{_FOLDER}/{upload_id}/{part}")
