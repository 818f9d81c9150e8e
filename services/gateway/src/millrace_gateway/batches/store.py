"""Every transaction of batches: state and the fact it causes, together.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
batch was taken over or cancelled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, false, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from millrace_gateway import convert
from millrace_gateway.batches import turns
from millrace_gateway.batches.domain import (
    NEXT,
    WINDOW,
    Batch,
    BatchError,
    Line,
    LineAnswer,
    Order,
    Status,
    Usage,
)
from millrace_gateway.batches.turns import Place, Standing, Waiting
from millrace_gateway.store import BATCH_LINES, BATCHES
from millrace_runtime import idempotency, leases, names, telemetry
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.outbox import Outbox

UNFINISHED = tuple(status.value for status in Status if not status.is_final)
_CANCELLABLE = tuple(status.value for status in Status if Status.CANCELLING in NEXT[status])


class BatchStore:
    """Rows of batches; also the source of the workers' work (``millrace_runtime.work``)."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        *,
        owner: str,
        lease_seconds: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._owner = owner
        self._duration = timedelta(seconds=lease_seconds)
        self._now = now

    def add(self, order: Order, request_id: str, digest: str) -> Batch:
        """A new batch, or the one that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        tenant = order.tenant
        with self._database.transaction() as connection:
            made = idempotency.find_made(connection, BATCHES, tenant, request_id, digest)
            if made is not None:
                return _load(connection, made)
            batch_id = names.new_id("batch")
            values = _new_values(batch_id, order, self._now())
            values |= idempotency.values(request_id, digest)
            connection.execute(BATCHES.insert().values(**values))
            batch = _load(connection, batch_id)
            self._outbox.record(connection, tenant, convert.batch_created(batch))
            return batch

    def get(self, tenant: str, batch_id: str) -> Batch | None:
        query = select(BATCHES).where(BATCHES.c.tenant == tenant, BATCHES.c.id == batch_id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else _batch(row)

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Batch]:
        """At most ``size`` batches, newest first, older than ``before_id`` if it is given."""
        query = select(BATCHES).where(BATCHES.c.tenant == tenant)
        if before_id:
            query = query.where(BATCHES.c.id < before_id)
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(BATCHES.c.id.desc()).limit(size))
            return [_batch(row) for row in rows]

    def cancel(self, tenant: str, batch_id: str) -> Batch | None:
        """Let a batch that is not at its end be cancelled; its worker loses it at once.

        Any other is returned unchanged; None when there is none.
        """
        cancelled = (
            update(BATCHES)
            .where(BATCHES.c.tenant == tenant, BATCHES.c.id == batch_id)
            .where(BATCHES.c.status.in_(_CANCELLABLE))
            .values(epoch=BATCHES.c.epoch + 1, lease_owner=None, lease_expires=None)
            .values(status=Status.CANCELLING.value, cancel_time=self._now())
        )
        with self._database.transaction() as connection:
            connection.execute(cancelled)
        return self.get(tenant, batch_id)

    def count_by_status(self) -> dict[str, int]:
        query = select(BATCHES.c.status, func.count()).group_by(BATCHES.c.status)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def claim(self) -> Lease | None:
        """A place for the oldest batch of the tenant whose turn it is (``turns.py``)."""
        now = self._now()
        with self._database.transaction() as connection:
            tenant = turns.next_tenant(_standing(connection, now))
            lease = leases.claim(
                connection,
                BATCHES,
                BATCHES.c.status.in_(UNFINISHED),
                owner=self._owner,
                now=now,
                duration=self._duration,
                preferred=BATCHES.c.tenant == tenant,
            )
            if lease is not None:
                connection.execute(leases.fenced(BATCHES, lease).values(claim_time=now))
            return lease

    def standing(self) -> Standing:
        """Who has places now, and who waits for one."""
        with self._database.transaction() as connection:
            return _standing(connection, self._now())

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return self._hold(connection, lease)

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, BATCHES, lease)

    def load(self, lease: Lease) -> Batch:
        """The batch as it stands, as long as it is ours."""
        query = select(BATCHES).where(BATCHES.c.id == lease.id, BATCHES.c.epoch == lease.epoch)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise LeaseLost(f"{lease.id} is no longer ours (epoch {lease.epoch})")
        return _batch(row)

    def add_lines(self, lease: Lease, lines: Sequence[Line]) -> None:
        """Note lines that wait for their answers; those that are noted already stay."""
        rows = [
            {"batch_id": lease.id, "number": line.number, "custom_id": line.custom_id}
            for line in lines
        ]
        with self._database.transaction() as connection:
            self._hold(connection, lease)
            connection.execute(_insert(connection), rows)

    def start(self, lease: Lease, model: str, total: int) -> Batch:
        """The input was found good, and all its lines are noted."""
        values = {"model": model, "total": total, "start_time": self._now()}
        return self._move(lease, Status.IN_PROGRESS, values)

    def unanswered(self, lease: Lease) -> set[int]:
        """The numbers of the lines that have no answer yet."""
        query = select(BATCH_LINES.c.number).where(
            BATCH_LINES.c.batch_id == lease.id, BATCH_LINES.c.answer.is_(None)
        )
        with self._database.transaction() as connection:
            return set(connection.execute(query).scalars())

    def answer(self, lease: Lease, number: int, answer: LineAnswer) -> None:
        """Keep a line's answer, and count it. A line that has one keeps that."""
        written = (
            update(BATCH_LINES)
            .where(BATCH_LINES.c.batch_id == lease.id, BATCH_LINES.c.number == number)
            .where(BATCH_LINES.c.answer.is_(None))
            .values(is_success=answer.is_success, answer=answer.document)
        )
        counted = leases.fenced(BATCHES, lease).where(BATCHES.c.status == Status.IN_PROGRESS.value)
        column = BATCHES.c.completed if answer.is_success else BATCHES.c.failed
        usage = {name: BATCHES.c[name] + more for name, more in asdict(answer.usage).items()}
        with self._database.transaction() as connection:
            # The batch's row first: whoever holds it is alone with the lines.
            result = connection.execute(counted.values({column.name: column + 1, **usage}))
            leases.require_held(result, lease)
            leases.require_held(connection.execute(written), lease)

    def finalize(self, lease: Lease) -> Batch:
        """No line is answered from here on."""
        return self._move(lease, Status.FINALIZING, {"finalize_time": self._now()})

    def lines(self, lease: Lease, after: int, count: int) -> Sequence[Line]:
        """Lines in the order of the input, with their answers."""
        query = (
            select(BATCH_LINES)
            .where(BATCH_LINES.c.batch_id == lease.id, BATCH_LINES.c.number > after)
            .order_by(BATCH_LINES.c.number)
            .limit(count)
        )
        with self._database.transaction() as connection:
            return [
                Line(row.number, row.custom_id, row.is_success, row.answer)
                for row in connection.execute(query)
            ]

    def end(
        self, lease: Lease, status: Status, output_file_id: str | None, error_file_id: str | None
    ) -> Batch:
        """Its files are made: the lines are needed no more."""
        values = {"output_file_id": output_file_id, "error_file_id": error_file_id}
        return self._move(lease, status, {**values, "finish_time": self._now()})

    def forget(self, before: datetime) -> int:
        """Delete the rows of batches that ended ``before``, and say how many; files stay."""
        old = delete(BATCHES).where(
            BATCHES.c.status.not_in(UNFINISHED), BATCHES.c.finish_time < before
        )
        with self._database.transaction() as connection:
            return connection.execute(old).rowcount

    def fail(self, lease: Lease, errors: Sequence[BatchError]) -> Batch:
        values = {"errors": [asdict(error) for error in errors], "finish_time": self._now()}
        return self._move(lease, Status.FAILED, values)

    def _move(self, lease: Lease, status: Status, values: Mapping[str, Any]) -> Batch:
        """One step of the life of a batch, and at its end the fact and the tidying."""
        before = [known.value for known in Status if status in NEXT[known]]
        moved = leases.fenced(BATCHES, lease).where(BATCHES.c.status.in_(before))
        with self._database.transaction() as connection:
            result = connection.execute(moved.values(status=status.value, **values))
            leases.require_held(result, lease)
            batch = _load(connection, lease.id)
            if status.is_final:
                connection.execute(delete(BATCH_LINES).where(BATCH_LINES.c.batch_id == lease.id))
                self._outbox.record(connection, batch.order.tenant, convert.batch_ended(batch))
            return batch

    def _hold(self, connection: Connection, lease: Lease) -> Lease:
        return leases.renew(connection, BATCHES, lease, now=self._now(), duration=self._duration)


def _standing(connection: Connection, now: datetime) -> Standing:
    unfinished = BATCHES.c.status.in_(UNFINISHED)
    is_held = func.coalesce(BATCHES.c.lease_expires >= now, false())
    places = select(BATCHES.c.id, BATCHES.c.tenant, BATCHES.c.claim_time, BATCHES.c.create_time)
    # Ended batches count too: whose have all ended was served just now.
    every = BATCHES.alias()
    served = select(func.max(every.c.claim_time)).where(every.c.tenant == BATCHES.c.tenant)
    waiting = (
        select(BATCHES.c.tenant, func.min(BATCHES.c.create_time), served.scalar_subquery())
        .where(unfinished, ~is_held)
        .group_by(BATCHES.c.tenant)
    )
    return Standing(
        [
            Place(row.id, row.tenant, row.claim_time or row.create_time)
            for row in connection.execute(places.where(unfinished, is_held))
        ],
        [Waiting(*row) for row in connection.execute(waiting)],
    )


def _insert(connection: Connection) -> Any:
    """An INSERT of lines that leaves those which are there."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return upsert(BATCH_LINES).on_conflict_do_nothing(index_elements=["batch_id", "number"])


def _load(connection: Connection, batch_id: str) -> Batch:
    return _batch(connection.execute(select(BATCHES).where(BATCHES.c.id == batch_id)).one())


def _new_values(batch_id: str, order: Order, now: datetime) -> dict[str, Any]:
    return {
        "id": batch_id,
        **asdict(order),
        "status": Status.VALIDATING.value,
        "traceparent": telemetry.current_traceparent(),
        "create_time": now,
        "expire_time": now + WINDOW,
        "total": 0,
        "completed": 0,
        "failed": 0,
        **asdict(Usage()),
        "errors": [],
    }


def _batch(row: Row[Any]) -> Batch:
    found = row._mapping
    return Batch(
        id=row.id,
        order=Order(row.tenant, row.key_id, row.endpoint, row.input_file_id, found["metadata"]),
        status=Status(row.status),
        traceparent=row.traceparent,
        create_time=row.create_time,
        expire_time=row.expire_time,
        start_time=row.start_time,
        finalize_time=row.finalize_time,
        cancel_time=row.cancel_time,
        finish_time=row.finish_time,
        model=row.model,
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        usage=Usage(row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens),
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        errors=[BatchError(**error) for error in row.errors],
    )
