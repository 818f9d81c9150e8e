"""Every transaction of the service: state and the fact it causes, together.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
work was taken over or cancelled. A tenant of ``-`` stands for every tenant.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from millrace_compressor.domain import (
    CANCELLED,
    SUPERSEDED,
    Compression,
    Content,
    Failure,
    Measurements,
    Order,
    Progress,
    State,
    Verdict,
    utc_now,
)
from millrace_compressor.rows import compression_of, compression_values, recipe_digest
from millrace_compressor.schema import COMPRESSIONS, CONSIDERED
from millrace_runtime import leases, names, telemetry
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease

RecordFact = Callable[[Connection, Compression], None]
"""Adds the fact that an ended compression is to a transaction."""

EVERY_TENANT = "-"
_BY_HAND = ""
"""In place of a deployment: a person asked for the compression."""
_UNFINISHED = (State.QUEUED, State.RUNNING)


class CompressionStore:
    """Rows of compressions; also the source of the worker's work (``millrace_runtime.work``)."""

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

    def is_considered(self, checkpoint_name: str) -> bool:
        query = select(CONSIDERED.c.name).where(CONSIDERED.c.name == checkpoint_name)
        with self._database.transaction() as connection:
            return connection.execute(query).first() is not None

    def consider(self, checkpoint_name: str, orders: Sequence[Order]) -> None:
        """Add what is ordered of a checkpoint, once, and remember that it was considered."""
        with self._database.transaction() as connection:
            for order in orders:
                self._add(connection, order)
            values = {"name": checkpoint_name, "time": self._now()}
            connection.execute(_insert(connection, CONSIDERED, values))

    def add(self, order: Order) -> Compression:
        """Add what is ordered, or return the compression that the same order made before."""
        with self._database.transaction() as connection:
            return self._add(connection, order)

    def _add(self, connection: Connection, order: Order) -> Compression:
        compression = Compression(
            names.new_id("compression"), order, telemetry.current_traceparent(), self._now()
        )
        connection.execute(_insert(connection, COMPRESSIONS, compression_values(compression)))
        self._supersede_overtaken(connection, order)
        row = connection.execute(
            select(COMPRESSIONS).where(
                COMPRESSIONS.c.tenant == order.tenant,
                COMPRESSIONS.c.checkpoint_digest == order.checkpoint.content.digest,
                COMPRESSIONS.c.target == order.target.value,
                COMPRESSIONS.c.recipe_digest == recipe_digest(order),
            )
        ).one()
        return compression_of(row)

    def _supersede_overtaken(self, connection: Connection, order: Order) -> None:
        """A machine that cannot keep up compresses a run's newest checkpoint, not its oldest.

        Also where the older one is told of later: the order of facts says nothing.
        """
        of_run = (
            (COMPRESSIONS.c.tenant == order.tenant)
            & (COMPRESSIONS.c.target == order.target.value)
            & COMPRESSIONS.c.checkpoint_name.startswith(_siblings(order), autoescape=True)
        )
        newest = select(func.max(COMPRESSIONS.c.checkpoint_step)).where(of_run).scalar_subquery()
        overtaken = (
            update(COMPRESSIONS)
            .where(of_run, COMPRESSIONS.c.checkpoint_step < newest)
            .where(COMPRESSIONS.c.state == State.QUEUED.value)
            .where(COMPRESSIONS.c.checkpoint_final.is_(False))
            .where(COMPRESSIONS.c.deployment != _BY_HAND)
            # A worker may have claimed one and not started it yet.
            .values(epoch=COMPRESSIONS.c.epoch + 1, lease_owner=None, lease_expires=None)
            .values(**self._ended(State.CANCELLED, SUPERSEDED))
        )
        connection.execute(overtaken)

    def get(self, tenant: str, id: str) -> Compression | None:
        query = select(COMPRESSIONS).where(COMPRESSIONS.c.tenant == tenant, COMPRESSIONS.c.id == id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else compression_of(row)

    def page(self, tenant: str, model: str, before_id: str, count: int) -> list[Compression]:
        """The newest ``count`` compressions older than ``before_id`` (empty: than anything)."""
        query = select(COMPRESSIONS).order_by(COMPRESSIONS.c.id.desc()).limit(count)
        if tenant != EVERY_TENANT:
            query = query.where(COMPRESSIONS.c.tenant == tenant)
        if model:
            query = query.where(COMPRESSIONS.c.model == model)
        if before_id:
            query = query.where(COMPRESSIONS.c.id < before_id)
        with self._database.transaction() as connection:
            return [compression_of(row) for row in connection.execute(query)]

    def count_by_state(self) -> dict[str, int]:
        query = select(COMPRESSIONS.c.state, func.count()).group_by(COMPRESSIONS.c.state)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def cancel(self, tenant: str, id: str) -> Compression | None:
        """Cancel an unfinished compression and take its worker's lease away; return it as it is.

        A finished one is returned unchanged; None when there is none.
        """
        unfinished = (
            update(COMPRESSIONS)
            .where(COMPRESSIONS.c.tenant == tenant, COMPRESSIONS.c.id == id)
            .where(COMPRESSIONS.c.state.in_([state.value for state in _UNFINISHED]))
            .values(epoch=COMPRESSIONS.c.epoch + 1, lease_owner=None, lease_expires=None)
            .values(**self._ended(State.CANCELLED, CANCELLED))
        )
        with self._database.transaction() as connection:
            connection.execute(unfinished)
        return self.get(tenant, id)

    def claim(self) -> Lease | None:
        claimable = COMPRESSIONS.c.state.in_([state.value for state in _UNFINISHED])
        with self._database.transaction() as connection:
            return leases.claim(
                connection,
                COMPRESSIONS,
                claimable,
                owner=self._owner,
                now=self._now(),
                duration=self._duration,
            )

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return leases.renew(
                connection, COMPRESSIONS, lease, now=self._now(), duration=self._duration
            )

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, COMPRESSIONS, lease)

    def start(self, lease: Lease) -> Compression:
        """The compression begins, or begins again; its first start is remembered."""
        values: dict[str, Any] = {
            "state": State.RUNNING.value,
            "start_time": func.coalesce(COMPRESSIONS.c.start_time, self._now()),
            "failure_reason": None,
            "failure_message": None,
        }
        return self._write(lease, **values)

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        self._write(lease, progress=asdict(progress))

    def count_attempt(self, lease: Lease) -> int:
        """One more try has crashed; how many that makes."""
        with self._database.transaction() as connection:
            fenced = leases.fenced(COMPRESSIONS, lease)
            attempts = COMPRESSIONS.c.attempts + 1
            leases.require_held(connection.execute(fenced.values(attempts=attempts)), lease)
            query = select(COMPRESSIONS.c.attempts).where(COMPRESSIONS.c.id == lease.id)
            return int(connection.execute(query).scalar_one())

    def put_off(self, lease: Lease, failure: Failure, wait: timedelta) -> None:
        """Let the compression wait, and show why. Ends the lease."""
        self._write(lease, failure_reason=failure.reason, failure_message=failure.message)
        with self._database.transaction() as connection:
            leases.put_off(connection, COMPRESSIONS, lease, self._now() + wait)

    def wait(self, lease: Lease, progress: Progress, wait: timedelta) -> None:
        """Let the compression wait for what others do for it. Ends the lease."""
        with self._database.transaction() as connection:
            told = leases.fenced(COMPRESSIONS, lease).values(progress=asdict(progress))
            leases.require_held(connection.execute(told), lease)
            leases.put_off(connection, COMPRESSIONS, lease, self._now() + wait)

    def succeed(
        self, lease: Lease, artifact: Content, measurements: Measurements, verdict: Verdict
    ) -> Compression:
        """The artifact is there and was judged: it passed, or it was rejected."""
        return self._write(
            lease,
            has_ended=True,
            **self._ended(State.SUCCEEDED),
            artifact=asdict(artifact),
            measurements=asdict(measurements),
            verdict=asdict(verdict),
        )

    def fail(self, lease: Lease, failure: Failure) -> Compression:
        return self._write(lease, has_ended=True, **self._ended(State.FAILED, failure))

    def _ended(self, state: State, failure: Failure | None = None) -> dict[str, Any]:
        values: dict[str, Any] = {"state": state.value, "finish_time": self._now()}
        if failure is not None:
            values |= {"failure_reason": failure.reason, "failure_message": failure.message}
        return values

    def _write(self, lease: Lease, has_ended: bool = False, **values: Any) -> Compression:
        """One fenced write, and the fact it causes when it ends the compression."""
        with self._database.transaction() as connection:
            fenced = leases.fenced(COMPRESSIONS, lease).values(**values)
            leases.require_held(connection.execute(fenced), lease)
            query = select(COMPRESSIONS).where(COMPRESSIONS.c.id == lease.id)
            compression = compression_of(connection.execute(query).one())
            if has_ended:
                self._record(connection, compression)
        return compression


def _insert(connection: Connection, table: Any, values: dict[str, Any]) -> Any:
    """An INSERT that changes nothing when a row with the same natural key is there."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return upsert(table).values(**values).on_conflict_do_nothing()


def _siblings(order: Order) -> str:
    """How the names of all checkpoints of an order's run begin."""
    return order.checkpoint.name.rpartition("/")[0] + "/"
