"""Which files and datasets hold given rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from millrace_data.app import Bytes
from millrace_data.domain import File
from millrace_data.row_index import open_index
from millrace_data.row_keeping import NotIndexed, RowKeeper
from millrace_data.row_store import LearntFrom, RowStore
from millrace_examples.rows import Unreadable
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

MAXIMUM_ROWS = 100_000


@dataclass(frozen=True)
class Holder:
    """What holds some of the rows, and in which part; ``hashes`` in their order."""

    name: str
    digest: str
    is_heldout: bool
    hashes: tuple[bytes, ...]


@dataclass(frozen=True)
class Found:
    """``row_count``: distinct rows that were looked for. ``unindexed``: names of what may hold
    them, and nobody can say."""

    holders: tuple[Holder, ...]
    row_count: int
    unindexed: tuple[str, ...]


class RowSearch:
    """Looks into the index of all that a tenant's models may have learnt from."""

    def __init__(self, store: RowStore, keeper: RowKeeper, stored: Bytes) -> None:
        self._store = store
        self._keeper = keeper
        self._bytes = stored

    def find(
        self,
        tenant: str,
        hashes: Sequence[bytes],
        file_id: str = "",
        *,
        only: Collection[str] = (),
    ) -> Found:
        """Who holds ``hashes``, or any row of the file; of those named in ``only``, if any are.

        Raises:
            InvalidArgument: no rows, FILE_NOT_FOUND, INVALID_FILE, TOO_MANY_ROWS.
            FailedPrecondition: CONTENT_DAMAGED.
        """
        wanted = set(hashes)
        if file_id:
            wanted |= self._rows_of(tenant, file_id)
        if not wanted:
            raise InvalidArgument("name a row by its hash, or a file of rows", field="hashes")
        holders: list[Holder] = []
        unindexed: list[str] = []
        for source in self._store.learnt_from(tenant, only):
            try:
                holders += self._held_by(source, sorted(wanted))
            except NotIndexed:
                unindexed.append(source.name)
        return Found(tuple(holders), len(wanted), tuple(unindexed))

    def _held_by(self, source: LearntFrom, wanted: Sequence[bytes]) -> list[Holder]:
        """
        Raises:
            NotIndexed
        """
        self._index_late(source)
        found = []
        for is_heldout, path in self._keeper.parts_of(source).items():
            with open_index(path) as index:
                held = tuple(hash for hash in wanted if hash in index)
            if held:
                found.append(Holder(source.name, source.content.digest, is_heldout, held))
        return found

    def _index_late(self, source: LearntFrom) -> None:
        """Of a file that was uploaded before rows were indexed."""
        if source.is_dataset or self._store.index_of(source.content.digest) is not None:
            return
        try:
            path = self._bytes.open(source.content)
            self._keeper.keep(path, source.filename, source.content.digest)
        except (FailedPrecondition, Unreadable) as error:
            raise NotIndexed(f"{source.name}: {error}") from error

    def _rows_of(self, tenant: str, file_id: str) -> set[bytes]:
        file = self._store.file(tenant, file_id)
        if file is None:
            raise InvalidArgument(
                f"there is no file {file_id}", reason="FILE_NOT_FOUND", field="file"
            )
        self._require_index(file)
        with self._keeper.of_file(file.content.digest) as index:
            if len(index) > MAXIMUM_ROWS:
                raise InvalidArgument(
                    f"{file.filename} has {len(index)} rows, and at most {MAXIMUM_ROWS} are "
                    "looked for at once; split it",
                    reason="TOO_MANY_ROWS",
                    field="file",
                )
            return {index[at] for at in range(len(index))}

    def _require_index(self, file: File) -> None:
        if self._store.index_of(file.content.digest) is not None:
            return
        try:
            path = self._bytes.open(file.content)
            self._keeper.keep(path, file.filename, file.content.digest)
        except Unreadable as error:
            raise InvalidArgument(
                f"{file.filename}: {error}", reason="INVALID_FILE", field="file"
            ) from error


def rows_of(
    database: Database, content: ContentStore, stored: Bytes
) -> tuple[RowKeeper, RowSearch]:
    """What keeps indexes, and what looks into them."""
    store = RowStore(database)
    keeper = RowKeeper(store, content)
    return keeper, RowSearch(store, keeper, stored)
