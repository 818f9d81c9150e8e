"""Indexes of the rows of files and datasets: made, kept, and found again."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from millrace_data.domain import Content
from millrace_data.row_index import (
    HELDOUT_FILE,
    TRAIN_FILE,
    RowIndex,
    open_index,
    write_index,
)
from millrace_data.row_store import LearntFrom
from millrace_examples.row_hash import hashes_of
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.manifest import (
    MANIFEST_NAME,
    TEMPORARY_PREFIX,
    ManifestError,
    fsync_path,
    remove_tree,
    sha256_file,
)

_FOLDER = "rows"


class NotIndexed(Exception):
    """Nobody can say which rows it holds."""


class Indexes(Protocol):
    """Rows of indexes (``row_store.RowStore``)."""

    def add(self, digest: str, index: Content) -> None: ...
    def index_of(self, digest: str) -> Content | None: ...


class RowKeeper:
    """An index lies at ``rows/<sha256 of what it is of>``; a dataset brings its own."""

    def __init__(self, indexes: Indexes, content: ContentStore) -> None:
        self._indexes = indexes
        self._content = content

    def keep(self, path: Path, filename: str, digest: str) -> None:
        """Make the index of a file, unless there is one; it stays when the file is deleted.

        Raises:
            Unreadable: naming the first line that is no row.
            OSError: the disk is full or fails.
        """
        if self._indexes.index_of(digest) is not None:
            return
        name = digest.removeprefix("sha256:")
        target = self._content.working_path(f"{_FOLDER}/{name}")
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{name}-{uuid.uuid4().hex}")
        try:
            write_index(temporary, hashes_of(path, filename))
            fsync_path(temporary)
            # Of two who make it at the same time both have the same bytes.
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(target.parent)
        index = Content(self._content.publish(target), sha256_file(target), target.stat().st_size)
        self._indexes.add(digest, index)

    def sweep(self, older_than_seconds: float) -> None:
        """Remove what a service that was killed left behind while it made an index."""
        before = time.time() - older_than_seconds
        folder = self._content.working_path(f"{_FOLDER}/any").parent
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if path.stat().st_mtime < before:
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def of_file(self, digest: str) -> Iterator[RowIndex]:
        """
        Raises:
            NotIndexed: it has none, or it is damaged.
        """
        index = self._indexes.index_of(digest)
        if index is None:
            raise NotIndexed(f"{digest} has no index of rows")
        with open_index(self._verified(index.uri, index.digest)) as found:
            yield found

    def parts_of(self, source: LearntFrom) -> dict[bool, Path]:
        """Where the indexes of what is learnt, and of what is held out (True), lie.

        Raises:
            NotIndexed
        """
        if not source.is_dataset:
            index = self._indexes.index_of(source.content.digest)
            if index is None:
                raise NotIndexed(f"{source.name} has no index of rows")
            return {False: self._verified(index.uri, index.digest)}
        # Not the whole directory: of a large dataset that would be hours.
        uri = source.content.uri
        path = self._verified(f"{uri}/{MANIFEST_NAME}", source.content.digest)
        files = json.loads(path.read_bytes())["files"]
        digests = {file["path"]: file["sha256"] for file in files}
        if TRAIN_FILE not in digests:
            raise NotIndexed(f"{source.name} was built before rows were indexed")
        names = {False: TRAIN_FILE, True: HELDOUT_FILE}
        return {
            is_heldout: self._verified(f"{uri}/{name}", digests[name])
            for is_heldout, name in names.items()
            if name in digests
        }

    def _verified(self, uri: str, digest: str) -> Path:
        try:
            return self._content.file(uri, digest)
        except (ManifestError, ContentOutsideRoot, FileNotFoundError) as error:
            raise NotIndexed(str(error)) from error
