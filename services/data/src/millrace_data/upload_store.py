"""Transactions of uploads: rows of uploads and parts, and the file that they become."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, select, update

from millrace_data.domain import File, RequestKey, Upload, UploadPart, UploadState, utc_now
from millrace_data.rows import part_of, part_values, upload_of, upload_values
from millrace_data.schema import UPLOAD_PARTS, UPLOADS
from millrace_data.store import FileStore, request_values, twice_if_raced
from millrace_data.uploads import require_pending
from millrace_runtime import idempotency
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition

MAXIMUM_PARTS = 10_000
_PENDING, _AVAILABLE = "PENDING", "AVAILABLE"


class UploadStore:
    """Rows of uploads. A part is announced before its bytes are put in place, as files are."""

    def __init__(
        self, database: Database, files: FileStore, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = database
        self._files = files
        self._now = now

    def add(self, upload: Upload, request: RequestKey) -> Upload:
        """Add a pending upload, or return the one that the same request made before.

        One that has ended without a file stands for no request any more.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        made = twice_if_raced(lambda: self._add(upload, request))
        return upload if made == upload.id else self.get(upload.tenant, made) or upload

    def _add(self, upload: Upload, request: RequestKey) -> str:
        with self._database.transaction() as connection:
            self._expire(connection)
            made = idempotency.find_made(
                connection, UPLOADS, upload.tenant, request.id, request.digest
            )
            if made is None:
                values = {**upload_values(upload), **request_values(request)}
                connection.execute(UPLOADS.insert().values(**values))
        return made or upload.id

    def get(self, tenant: str, id: str) -> Upload | None:
        query = select(UPLOADS).where(UPLOADS.c.tenant == tenant, UPLOADS.c.id == id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return upload_of(row, self._files.get(tenant, row.file_id) if row.file_id else None)

    def announce_part(self, part: UploadPart, request: RequestKey) -> UploadPart:
        """Add ``part`` as PENDING, before its bytes are put in place.

        Returns the part that stands for ``request``: an earlier one when it was sent before.

        Raises:
            FailedPrecondition: the upload has ended, or has more parts than it can need.
            AlreadyExists: the request id was used for another request.
        """
        return twice_if_raced(lambda: self._announce_part(part, request))

    def _announce_part(self, part: UploadPart, request: RequestKey) -> UploadPart:
        with self._database.transaction() as connection:
            upload = self._pending(connection, part.upload_id)
            made = idempotency.find_made(
                connection, UPLOAD_PARTS, part.tenant, request.id, request.digest
            )
            if made is not None:
                return part_of(_part_row(connection, made))
            _require_room(connection, upload, part)
            values = {**part_values(part), **request_values(request)}
            connection.execute(UPLOAD_PARTS.insert().values(state=_PENDING, **values))
        return part

    def make_part_available(self, part: UploadPart, uri: str) -> UploadPart:
        """The bytes are in place. A second call changes nothing.

        Raises:
            FailedPrecondition: the upload has ended meanwhile.
        """
        shown = update(UPLOAD_PARTS).where(UPLOAD_PARTS.c.id == part.id)
        with self._database.transaction() as connection:
            self._pending(connection, part.upload_id)
            connection.execute(shown.values(state=_AVAILABLE, uri=uri))
            return part_of(_part_row(connection, part.id))

    def _pending(self, connection: Connection, id: str) -> Upload:
        """The upload, which does not end before the transaction does."""
        query = select(UPLOADS).where(UPLOADS.c.id == id).with_for_update()
        upload = upload_of(connection.execute(query).one()).at(self._now())
        require_pending(upload)
        return upload

    def parts_page(self, upload: Upload, before_id: str, count: int) -> list[UploadPart]:
        """The newest ``count`` parts older than ``before_id`` (empty: than anything)."""
        query = _available(upload).order_by(UPLOAD_PARTS.c.id.desc()).limit(count)
        if before_id:
            query = query.where(UPLOAD_PARTS.c.id < before_id)
        with self._database.transaction() as connection:
            return [part_of(row) for row in connection.execute(query)]

    def parts(self, upload: Upload) -> dict[str, UploadPart]:
        """All parts, by id."""
        with self._database.transaction() as connection:
            return {row.id: part_of(row) for row in connection.execute(_available(upload))}

    def complete(
        self,
        upload: Upload,
        file: File,
        uri: str,
        part_ids: Sequence[str],
        md5: str,
        traceparent: str,
    ) -> Upload:
        """Show the file, say so, and end the upload; return it as it is then.

        One that has ended already is returned unchanged, and the file is not shown.

        Raises:
            Aborted: the completion took so long that the file was given up meanwhile.
        """
        pending = update(UPLOADS).where(
            UPLOADS.c.id == upload.id, UPLOADS.c.state == UploadState.PENDING
        )
        values = {
            "state": UploadState.COMPLETED,
            "file_id": file.id,
            "part_ids": list(part_ids),
            "md5": md5,
            "update_time": self._now(),
        }
        with self._database.transaction() as connection:
            if connection.execute(pending.values(**values)).rowcount:
                file = self._files.show(connection, file, uri, traceparent)
                row = connection.execute(select(UPLOADS).where(UPLOADS.c.id == upload.id)).one()
                return upload_of(row, file)
        return self.get(upload.tenant, upload.id) or upload

    def cancel(self, tenant: str, id: str) -> Upload | None:
        """Cancel a pending upload; return it as it is then, or None when there is none."""
        pending = update(UPLOADS).where(
            UPLOADS.c.tenant == tenant,
            UPLOADS.c.id == id,
            UPLOADS.c.state == UploadState.PENDING,
        )
        with self._database.transaction() as connection:
            connection.execute(pending.values(**self._ended(UploadState.CANCELLED)))
        return self.get(tenant, id)

    def expire(self) -> None:
        """End the pending uploads whose time has run out."""
        with self._database.transaction() as connection:
            self._expire(connection)

    def _expire(self, connection: Connection) -> None:
        due = update(UPLOADS).where(
            UPLOADS.c.state == UploadState.PENDING, UPLOADS.c.expire_time <= self._now()
        )
        connection.execute(due.values(**self._ended(UploadState.EXPIRED)))

    def _ended(self, state: UploadState) -> dict[str, object]:
        return {"state": state, "update_time": self._now(), "request_id": None}

    def ended_with_parts(self, before: datetime) -> list[str]:
        """Uploads that ended before ``before`` and still have parts."""
        query = (
            select(UPLOADS.c.id)
            .where(UPLOADS.c.state != UploadState.PENDING, UPLOADS.c.update_time < before)
            .where(
                select(UPLOAD_PARTS.c.id).where(UPLOAD_PARTS.c.upload_id == UPLOADS.c.id).exists()
            )
        )
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())

    def forget_parts(self, id: str) -> None:
        """Drop the rows of an upload's parts, once their bytes have gone."""
        with self._database.transaction() as connection:
            connection.execute(delete(UPLOAD_PARTS).where(UPLOAD_PARTS.c.upload_id == id))


def _available(upload: Upload) -> Select[Any]:
    return select(UPLOAD_PARTS).where(
        UPLOAD_PARTS.c.upload_id == upload.id, UPLOAD_PARTS.c.state == _AVAILABLE
    )


def _part_row(connection: Connection, id: str) -> Row[Any]:
    return connection.execute(select(UPLOAD_PARTS).where(UPLOAD_PARTS.c.id == id)).one()


def _require_room(connection: Connection, upload: Upload, part: UploadPart) -> None:
    """A part whose answer was lost is sent again: twice the announced bytes must be enough.

    Raises:
        FailedPrecondition: TOO_MANY_PARTS, UPLOAD_FULL.
    """
    totals = select(func.count(), func.coalesce(func.sum(UPLOAD_PARTS.c.size_bytes), 0))
    of_upload = totals.where(UPLOAD_PARTS.c.upload_id == upload.id)
    count, size_bytes = connection.execute(of_upload).one()
    if count >= MAXIMUM_PARTS:
        raise FailedPrecondition(
            f"upload {upload.id} has {MAXIMUM_PARTS} parts already; send larger ones",
            reason="TOO_MANY_PARTS",
        )
    if size_bytes + part.content.size_bytes > 2 * upload.size_bytes:
        raise FailedPrecondition(
            f"the parts of upload {upload.id} have more than twice the {upload.size_bytes} bytes "
            "that were announced; create another",
            reason="UPLOAD_FULL",
        )
