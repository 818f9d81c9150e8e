"""Rows' indexes of files: where each is. They stay when the file is deleted."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from millrace_data.domain import Content, File, FilePurpose, WorkState
from millrace_data.rows import dataset_of, file_of
from millrace_data.schema import DATASETS, FILES, ROW_INDEXES
from millrace_runtime import names
from millrace_runtime.database import Database

_PENDING = "PENDING"


@dataclass(frozen=True)
class LearntFrom:
    """A file for fine-tuning, which may be deleted, or a dataset that is ready."""

    name: str
    filename: str
    content: Content
    is_dataset: bool = False


class RowStore:
    """Rows of indexes, and of what may have been learnt from."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, digest: str, index: Content) -> None:
        """Remember the index of the content ``digest``; a second time changes nothing."""
        values = {
            "digest": digest,
            "uri": index.uri,
            "index_digest": index.digest,
            "size_bytes": index.size_bytes,
        }
        with self._database.transaction() as connection:
            statement = _insert(connection).values(**values)
            connection.execute(statement.on_conflict_do_nothing())

    def index_of(self, digest: str) -> Content | None:
        query = select(ROW_INDEXES).where(ROW_INDEXES.c.digest == digest)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else Content(row.uri, row.index_digest, row.size_bytes)

    def file(self, tenant: str, id: str) -> File | None:
        """A file, deleted or not."""
        query = select(FILES).where(
            FILES.c.tenant == tenant, FILES.c.id == id, FILES.c.state != _PENDING
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else file_of(row)

    def learnt_from(self, tenant: str, only: Collection[str] = ()) -> list[LearntFrom]:
        """All that a model of the tenant could have learnt from, oldest first; of those named in
        ``only``, if any are."""
        files = select(FILES).where(
            FILES.c.tenant == tenant,
            FILES.c.purpose == FilePurpose.FINE_TUNE.value,
            FILES.c.state != _PENDING,
        )
        datasets = select(DATASETS).where(
            DATASETS.c.tenant == tenant, DATASETS.c.state == WorkState.SUCCEEDED.value
        )
        if only:
            ids = [names.last_id(name) for name in only if names.tenant_of(name) == tenant]
            files = files.where(FILES.c.id.in_(ids))
            datasets = datasets.where(DATASETS.c.id.in_(ids))
        found: list[LearntFrom] = []
        with self._database.transaction() as connection:
            for row in connection.execute(files.order_by(FILES.c.id)):
                file = file_of(row)
                found.append(LearntFrom(file.name, file.filename, file.content))
            for row in connection.execute(datasets.order_by(DATASETS.c.id)):
                dataset = dataset_of(row)
                assert dataset.built is not None, "it has succeeded"
                content = dataset.built.content
                found.append(LearntFrom(dataset.name, "", content, is_dataset=True))
        return found


def _insert(connection: Connection) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(ROW_INDEXES)
