"""Every transaction of the service: state and the fact it causes, together.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
work was taken over or cancelled. A tenant of ``-`` stands for every tenant.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from millrace_data.domain import (
    CANCELLED,
    BuiltDataset,
    Dataset,
    DatasetFailed,
    DatasetReady,
    Fact,
    Failure,
    File,
    FilePurpose,
    FileUploaded,
    Progress,
    RequestKey,
    WorkState,
    utc_now,
)
from millrace_data.rows import dataset_of, dataset_values, file_of, file_values
from millrace_data.schema import DATASETS, FILES, STORED_BYTES, UPLOADS
from millrace_runtime import idempotency, leases
from millrace_runtime.database import Database, hold_locks
from millrace_runtime.errors import Aborted
from millrace_runtime.leases import Lease

RecordFact = Callable[[Connection, Fact, str], None]
"""Adds a fact to a transaction: (connection, fact, traceparent)."""

EVERY_TENANT = "-"
Made = TypeVar("Made")

_PENDING, _AVAILABLE, _DELETED = "PENDING", "AVAILABLE", "DELETED"
_UNFINISHED = (WorkState.QUEUED, WorkState.RUNNING)


class FileStore:
    """Rows of files, and who may touch the bytes behind them."""

    def __init__(
        self, database: Database, record: RecordFact, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = database
        self._record = record
        self._now = now

    def announce(self, file: File, request: RequestKey) -> File:
        """Add ``file`` as PENDING, before its bytes are put in place: nobody removes them now.

        Returns the file that stands for ``request``: an earlier one when it was sent before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        return twice_if_raced(lambda: self._announce(file, request))

    def _announce(self, file: File, request: RequestKey) -> File:
        with self._database.transaction() as connection:
            made = idempotency.find_made(connection, FILES, file.tenant, request.id, request.digest)
            if made is not None:
                row = connection.execute(select(FILES).where(FILES.c.id == made)).one()
                return file_of(row)
            _lock_bytes(connection, file.content.digest)
            connection.execute(
                FILES.insert().values(
                    state=_PENDING, **file_values(file), **request_values(request)
                )
            )
        return file

    def make_available(self, file: File, uri: str, traceparent: str) -> File:
        """The bytes are in place: show the file, and say so. A second call changes nothing.

        Raises:
            Aborted: the upload took so long that it was given up meanwhile.
        """
        with self._database.transaction() as connection:
            return self.show(connection, file, uri, traceparent)

    def show(self, connection: Connection, file: File, uri: str, traceparent: str) -> File:
        """``make_available`` within a transaction of somebody else's; what it raises undoes it."""
        shown = update(FILES).where(FILES.c.id == file.id, FILES.c.state == _PENDING)
        changed = connection.execute(shown.values(state=_AVAILABLE, uri=uri)).rowcount
        row = connection.execute(select(FILES).where(FILES.c.id == file.id)).one()
        if row.state != _AVAILABLE:
            raise Aborted("the upload took too long; send the file again", reason="UPLOAD_EXPIRED")
        if changed:
            self._record(connection, FileUploaded(file_of(row)), traceparent)
        return file_of(row)

    def get(self, tenant: str, id: str) -> File | None:
        query = select(FILES).where(FILES.c.tenant == tenant, FILES.c.id == id, self._is_there())
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else file_of(row)

    def page(
        self,
        tenant: str,
        last_id: str,
        count: int,
        purpose: FilePurpose | None,
        oldest_first: bool = False,
    ) -> list[File]:
        """``count`` files that follow ``last_id`` (empty: the first), newest first or oldest."""
        query = _following(FILES, tenant, last_id, count, oldest_first).where(self._is_there())
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        with self._database.transaction() as connection:
            return [file_of(row) for row in connection.execute(query)]

    def _is_there(self) -> ColumnElement[bool]:
        has_time = FILES.c.expire_time.is_(None) | (FILES.c.expire_time > self._now())
        return (FILES.c.state == _AVAILABLE) & has_time

    def mark_deleted(self, tenant: str, id: str) -> str | None:
        """Hide a file for ever; return its digest, or None when there is no such file.

        Its request id is free again: a new upload under it makes a new file.
        """
        file = self.get(tenant, id)
        if file is None:
            return None
        with self._database.transaction() as connection:
            changed = _hide(connection, id)
        return file.content.digest if changed else None

    def expire(self) -> None:
        """Hide the files whose time has run out; their bytes are then not used any more."""
        due = select(FILES.c.id).where(
            FILES.c.state == _AVAILABLE, FILES.c.expire_time <= self._now()
        )
        with self._database.transaction() as connection:
            for id in connection.execute(due).scalars().all():
                _hide(connection, id)

    def abandon_pending(self, before: datetime) -> None:
        """Give up the uploads that were announced before ``before`` and never finished."""
        abandoned = update(FILES).where(FILES.c.state == _PENDING, FILES.c.create_time < before)
        with self._database.transaction() as connection:
            connection.execute(abandoned.values(state=_DELETED, request_id=None))

    def unused_digests(self) -> list[str]:
        """Digests that may have bytes in the store and that no file needs any more."""
        with self._database.transaction() as connection:
            query = select(STORED_BYTES.c.digest).where(~_is_used(STORED_BYTES.c.digest))
            return list(connection.execute(query).scalars())

    def remove_bytes(self, digest: str, remove: Callable[[], None]) -> bool:
        """Call ``remove`` and forget ``digest``, unless a file needs it; say whether it did.

        ``remove`` runs inside the transaction: an upload of the same bytes waits for it, and
        then puts them in place again. So a removal that is stopped keeps its lock: what it
        removes once it goes on must not be what came after it.
        """
        with self._database.transaction() as connection:
            hold_locks(connection)
            row = STORED_BYTES.c.digest == digest
            locked = connection.execute(select(STORED_BYTES).where(row).with_for_update()).first()
            used = connection.execute(select(_is_used(digest))).scalar_one()
            if locked is None or used:
                return False
            remove()
            connection.execute(delete(STORED_BYTES).where(row))
        return True


class DatasetStore:
    """Rows of datasets; also the source of the builder's work (``millrace_runtime.work``)."""

    def __init__(
        self,
        database: Database,
        record: RecordFact,
        *,
        owner: str,
        lease_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._record = record
        self._owner = owner
        self._duration = timedelta(seconds=lease_seconds)
        self._now = now

    def add(self, dataset: Dataset, request: RequestKey) -> Dataset:
        """Add a QUEUED dataset, or return the one that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        return twice_if_raced(lambda: self._add(dataset, request))

    def _add(self, dataset: Dataset, request: RequestKey) -> Dataset:
        with self._database.transaction() as connection:
            made = idempotency.find_made(
                connection, DATASETS, dataset.tenant, request.id, request.digest
            )
            if made is not None:
                return dataset_of(connection.execute(_by_id(made)).one())
            values = {**dataset_values(dataset), **request_values(request)}
            connection.execute(DATASETS.insert().values(**values))
        return dataset

    def get(self, tenant: str, id: str) -> Dataset | None:
        query = _by_id(id).where(DATASETS.c.tenant == tenant)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else dataset_of(row)

    def leased(self, lease: Lease) -> Dataset:
        with self._database.transaction() as connection:
            return dataset_of(connection.execute(_by_id(lease.id)).one())

    def page(self, tenant: str, before_id: str, count: int) -> list[Dataset]:
        """The newest ``count`` datasets older than ``before_id`` (empty: than anything)."""
        with self._database.transaction() as connection:
            query = _following(DATASETS, tenant, before_id, count)
            return [dataset_of(row) for row in connection.execute(query)]

    def count_by_state(self) -> dict[str, int]:
        query = select(DATASETS.c.state, func.count()).group_by(DATASETS.c.state)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def states(self, ids: Sequence[str]) -> dict[str, tuple[WorkState, datetime]]:
        """State and last change of those of ``ids`` that exist."""
        columns = (DATASETS.c.id, DATASETS.c.state, DATASETS.c.update_time)
        with self._database.transaction() as connection:
            rows = connection.execute(select(*columns).where(DATASETS.c.id.in_(ids)))
            return {row.id: (WorkState(row.state), row.update_time) for row in rows}

    def cancel(self, tenant: str, id: str) -> Dataset | None:
        """Cancel an unfinished dataset and take its builder's lease away; return it as it is.

        A finished one is returned unchanged; None when there is no such dataset.
        """
        values = {
            "state": WorkState.CANCELLED,
            "failure_reason": CANCELLED.reason,
            "failure_message": CANCELLED.message,
            "epoch": DATASETS.c.epoch + 1,
            "lease_owner": None,
            "lease_expires": None,
            "update_time": self._now(),
        }
        unfinished = (
            update(DATASETS)
            .where(DATASETS.c.tenant == tenant, DATASETS.c.id == id)
            .where(DATASETS.c.state.in_(_UNFINISHED))
        )
        with self._database.transaction() as connection:
            changed = connection.execute(unfinished.values(**values)).rowcount
            row = connection.execute(_by_id(id).where(DATASETS.c.tenant == tenant)).first()
            if row is None:
                return None
            if changed:
                self._record(connection, DatasetFailed(dataset_of(row)), row.traceparent)
        return dataset_of(row)

    def claim(self) -> Lease | None:
        claimable = DATASETS.c.state.in_(_UNFINISHED)
        with self._database.transaction() as connection:
            return leases.claim(
                connection,
                DATASETS,
                claimable,
                owner=self._owner,
                now=self._now(),
                duration=self._duration,
            )

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return leases.renew(
                connection, DATASETS, lease, now=self._now(), duration=self._duration
            )

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, DATASETS, lease)

    def start(self, lease: Lease) -> Dataset:
        """The build begins, or begins again; what kept it from going on is shown no more."""
        values = {"failure_reason": None, "failure_message": None}
        return self._write(lease, state=WorkState.RUNNING, **values)

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        self._write(lease, progress=asdict(progress))

    def count_attempt(self, lease: Lease) -> int:
        """One more build has crashed; how many that makes."""
        return self._write(lease, attempts=DATASETS.c.attempts + 1).attempts

    def put_off(self, lease: Lease, failure: Failure, wait: timedelta) -> None:
        """Let the build wait, and show why. Ends the lease."""
        self._write(lease, failure_reason=failure.reason, failure_message=failure.message)
        with self._database.transaction() as connection:
            leases.put_off(connection, DATASETS, lease, self._now() + wait)

    def succeed(self, lease: Lease, built: BuiltDataset) -> Dataset:
        values = asdict(built) | asdict(built.content)
        del values["content"]
        return self._write(lease, DatasetReady, state=WorkState.SUCCEEDED, **values)

    def fail(self, lease: Lease, failure: Failure) -> Dataset:
        return self._write(
            lease,
            DatasetFailed,
            state=WorkState.FAILED,
            failure_reason=failure.reason,
            failure_message=failure.message,
        )

    def _write(
        self,
        lease: Lease,
        fact: Callable[[Dataset], Fact] | None = None,
        **values: Any,
    ) -> Dataset:
        """One fenced write, and the fact it causes."""
        with self._database.transaction() as connection:
            fenced = leases.fenced(DATASETS, lease).values(update_time=self._now(), **values)
            leases.require_held(connection.execute(fenced), lease)
            row = connection.execute(_by_id(lease.id)).one()
            if fact is not None:
                self._record(connection, fact(dataset_of(row)), row.traceparent)
        return dataset_of(row)


def twice_if_raced(insert: Callable[[], Made]) -> Made:
    """Two requests with one id may both find nothing made (PostgreSQL): the later one's insert
    then breaks the unique constraint, and finds what the earlier made when tried again."""
    try:
        return insert()
    except IntegrityError:
        return insert()


def _hide(connection: Connection, id: str) -> bool:
    """Delete a file; the requests that made it may be made again. Whether it was there."""
    shown = update(FILES).where(FILES.c.id == id, FILES.c.state == _AVAILABLE)
    completed = update(UPLOADS).where(UPLOADS.c.file_id == id)
    connection.execute(completed.values(request_id=None))
    return connection.execute(shown.values(state=_DELETED, request_id=None)).rowcount > 0


def _lock_bytes(connection: Connection, digest: str) -> None:
    """Make the row of ``digest`` if need be, and hold it until the transaction ends."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = upsert(STORED_BYTES).values(digest=digest)
    # An update that changes nothing takes the lock, where DO NOTHING would not.
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[STORED_BYTES.c.digest], set_={"digest": statement.excluded.digest}
        )
    )


def _is_used(digest: ColumnElement[str] | str) -> ColumnElement[bool]:
    needs = select(FILES.c.id).where(FILES.c.digest == digest, FILES.c.state != _DELETED)
    return needs.exists()


def _following(
    table: Table, tenant: str, last_id: str, count: int, oldest_first: bool = False
) -> Select[Any]:
    query = select(table).order_by(table.c.id if oldest_first else table.c.id.desc()).limit(count)
    if tenant != EVERY_TENANT:
        query = query.where(table.c.tenant == tenant)
    if not last_id:
        return query
    return query.where(table.c.id > last_id if oldest_first else table.c.id < last_id)


def _by_id(id: str) -> Select[Any]:
    return select(DATASETS).where(DATASETS.c.id == id)


def request_values(request: RequestKey) -> dict[str, str | None]:
    return idempotency.values(request.id, request.digest)
