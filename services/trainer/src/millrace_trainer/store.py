"""Every transaction of the service: state and the fact it causes, together.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
work was taken over, paused or cancelled. A tenant of ``-`` stands for every tenant, and a run
of ``-`` for every run.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, Table, Update, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from millrace_runtime import idempotency, leases
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease
from millrace_trainer.domain import (
    RETRY_PHASE,
    Checkpoint,
    CheckpointFinished,
    Content,
    Fact,
    Failure,
    Metric,
    Progress,
    RequestKey,
    Run,
    RunEnded,
    RunStarted,
    State,
    utc_now,
)
from millrace_trainer.rows import checkpoint_of, checkpoint_values, metric_of, run_of, run_values
from millrace_trainer.schema import CHECKPOINTS, METRICS, RUNS

RecordFact = Callable[[Connection, Fact, str], None]
"""Adds a fact to a transaction: (connection, fact, traceparent)."""

EVERY = "-"
_WORKING = (State.QUEUED.value, State.RUNNING.value)


class RunStore:
    """Rows of runs and checkpoints; also the source of the workers' work."""

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

    def made_by(self, tenant: str, request: RequestKey) -> Run | None:
        """The run that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        with self._database.transaction() as connection:
            made = idempotency.find_made(connection, RUNS, tenant, request.id, request.digest)
            return None if made is None else run_of(connection.execute(_by_id(made)).one())

    def add(self, run: Run, request: RequestKey) -> Run:
        """Add a QUEUED run, or return the one that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        try:
            return self._add(run, request)
        except IntegrityError:
            # Two requests with one id raced (PostgreSQL): the later finds what the earlier made.
            return self._add(run, request)

    def _add(self, run: Run, request: RequestKey) -> Run:
        with self._database.transaction() as connection:
            made = idempotency.find_made(connection, RUNS, run.tenant, request.id, request.digest)
            if made is not None:
                return run_of(connection.execute(_by_id(made)).one())
            values = {**run_values(run), **idempotency.values(request.id, request.digest)}
            connection.execute(RUNS.insert().values(**values))
        return run

    def get(self, tenant: str, id: str) -> Run | None:
        with self._database.transaction() as connection:
            row = connection.execute(_by_id(id).where(RUNS.c.tenant == tenant)).first()
        return None if row is None else run_of(row)

    def page(self, tenant: str, before_id: str, count: int) -> list[Run]:
        """The newest ``count`` runs older than ``before_id`` (empty: than anything)."""
        with self._database.transaction() as connection:
            return [
                run_of(row) for row in connection.execute(_newest(RUNS, tenant, before_id, count))
            ]

    def get_checkpoint(self, tenant: str, run_id: str, id: str) -> Checkpoint | None:
        query = select(CHECKPOINTS).where(
            CHECKPOINTS.c.tenant == tenant, CHECKPOINTS.c.run_id == run_id, CHECKPOINTS.c.id == id
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else checkpoint_of(row)

    def checkpoint_page(
        self, tenant: str, run_id: str, before_id: str, count: int
    ) -> list[Checkpoint]:
        """The newest ``count`` checkpoints older than ``before_id`` (empty: than anything)."""
        query = _newest(CHECKPOINTS, tenant, before_id, count)
        if run_id != EVERY:
            query = query.where(CHECKPOINTS.c.run_id == run_id)
        with self._database.transaction() as connection:
            return [checkpoint_of(row) for row in connection.execute(query)]

    def metric_page(self, run_id: str, after_step: int, count: int) -> list[Metric]:
        """The oldest ``count`` measurements of a run after ``after_step``."""
        query = (
            select(METRICS)
            .where(METRICS.c.run_id == run_id, METRICS.c.step > after_step)
            .order_by(METRICS.c.step)
            .limit(count)
        )
        with self._database.transaction() as connection:
            return [metric_of(row) for row in connection.execute(query)]

    def count_by_state(self) -> dict[str, int]:
        query = select(RUNS.c.state, func.count()).group_by(RUNS.c.state)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def waiting_datasets(self) -> list[str]:
        """Names of the datasets that runs wait for."""
        query = select(RUNS.c.dataset_name).distinct().where(_waits())
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())

    def dataset_ready(self, dataset_name: str, dataset: Content) -> None:
        """Let the runs that wait for a dataset begin."""
        waiting = update(RUNS).where(RUNS.c.dataset_name == dataset_name, _waits())
        with self._database.transaction() as connection:
            connection.execute(waiting.values(dataset=asdict(dataset), update_time=self._now()))

    def dataset_failed(self, dataset_name: str, failure: Failure) -> None:
        """Fail the runs that wait for a dataset."""
        query = select(RUNS.c.id).where(RUNS.c.dataset_name == dataset_name, _waits())
        with self._database.transaction() as connection:
            for id in list(connection.execute(query).scalars()):
                waiting = update(RUNS).where(RUNS.c.id == id, _waits())
                self._end(connection, waiting, id, State.FAILED, failure)

    def cancel(self, tenant: str, id: str) -> Run | None:
        """Cancel a run that is not final and take its worker's lease away; None: there is none."""
        with self._database.transaction() as connection:
            unfinished = _taken_away(tenant, id, (*_WORKING, State.PAUSED.value))
            self._end(connection, unfinished, id, State.CANCELLED, None)
        return self.get(tenant, id)

    def pause(self, tenant: str, id: str) -> Run | None:
        """Stop a run that works; it keeps its checkpoints. None: there is none."""
        paused = _taken_away(tenant, id, _WORKING)
        with self._database.transaction() as connection:
            connection.execute(paused.values(state=State.PAUSED.value, update_time=self._now()))
        return self.get(tenant, id)

    def resume(self, tenant: str, id: str) -> Run | None:
        """Queue a paused run again. None: there is none."""
        queued = _taken_away(tenant, id, (State.PAUSED.value,))
        with self._database.transaction() as connection:
            connection.execute(queued.values(state=State.QUEUED.value, update_time=self._now()))
        return self.get(tenant, id)

    def claim(self) -> Lease | None:
        claimable = RUNS.c.state.in_(_WORKING) & RUNS.c.dataset.is_not(None)
        with self._database.transaction() as connection:
            return leases.claim(
                connection,
                RUNS,
                claimable,
                owner=self._owner,
                now=self._now(),
                duration=self._duration,
            )

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return leases.renew(connection, RUNS, lease, now=self._now(), duration=self._duration)

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, RUNS, lease)

    def start(self, lease: Lease) -> Run:
        """The run begins, or begins again; its first start is a fact."""
        with self._database.transaction() as connection:
            was = run_of(connection.execute(_by_id(lease.id)).one())
            begins = {"state": State.RUNNING.value, "has_started": True}
            unhindered = {"failure_reason": None, "failure_message": None}
            run = self._write(connection, lease, **begins, **unhindered)
            if not was.has_started:
                self._record(connection, RunStarted(run), run.traceparent)
        return run

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        """Remember how far the run is, and what was measured at that step."""
        values = {
            "run_id": lease.id,
            "step": progress.completed,
            "time": self._now(),
            "metrics": dict(progress.metrics),
        }
        with self._database.transaction() as connection:
            self._write(connection, lease, progress=asdict(progress))
            if progress.metrics:
                # A run that resumes measures a few steps again.
                insert = _insert(connection, METRICS).values(**values)
                changed = {key: values[key] for key in ("time", "metrics")}
                keys = [METRICS.c.run_id, METRICS.c.step]
                connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed))

    def add_checkpoint(self, lease: Lease, checkpoint: Checkpoint, parameter_count: int) -> None:
        """Add a checkpoint and say so, once: a job that resumes reports its checkpoints again.

        A new one is progress: the crashes before it count no more.
        """
        with self._database.transaction() as connection:
            run = self._write(connection, lease, parameter_count=parameter_count)
            insert = _insert(connection, CHECKPOINTS).values(**checkpoint_values(checkpoint))
            # psycopg counts no rows of an INSERT here: what it returns tells whether it happened.
            made = insert.on_conflict_do_nothing().returning(CHECKPOINTS.c.id)
            if connection.execute(made).first() is not None:
                self._write(connection, lease, attempts=0)
                self._record(connection, CheckpointFinished(checkpoint), run.traceparent)

    def count_attempt(self, lease: Lease) -> int:
        """One more try has crashed; how many that makes since the newest checkpoint."""
        with self._database.transaction() as connection:
            self._write(connection, lease, attempts=RUNS.c.attempts + 1)
            query = select(RUNS.c.attempts).where(RUNS.c.id == lease.id)
            return int(connection.execute(query).scalar_one())

    def hinder(self, lease: Lease, failure: Failure) -> None:
        """Show what keeps the run from going on, until it does; it has not failed."""
        said = {"failure_reason": failure.reason, "failure_message": failure.message}
        with self._database.transaction() as connection:
            self._write(connection, lease, **said)

    def put_off(self, lease: Lease, wait: timedelta) -> None:
        """Let the run wait before it is tried again, and show that it does. Ends the lease."""
        with self._database.transaction() as connection:
            run = run_of(connection.execute(_by_id(lease.id)).one())
            waiting = replace(run.progress, phase=RETRY_PHASE)
            self._write(connection, lease, progress=asdict(waiting))
            leases.put_off(connection, RUNS, lease, self._now() + wait)

    def succeed(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            self._write(connection, lease)
            self._end(connection, leases.fenced(RUNS, lease), lease.id, State.SUCCEEDED, None)

    def fail(self, lease: Lease, failure: Failure) -> None:
        with self._database.transaction() as connection:
            self._write(connection, lease)
            self._end(connection, leases.fenced(RUNS, lease), lease.id, State.FAILED, failure)

    def _write(self, connection: Connection, lease: Lease, **values: Any) -> Run:
        fenced = leases.fenced(RUNS, lease).values(update_time=self._now(), **values)
        leases.require_held(connection.execute(fenced), lease)
        return run_of(connection.execute(_by_id(lease.id)).one())

    def _end(
        self,
        connection: Connection,
        statement: Update,
        id: str,
        state: State,
        failure: Failure | None,
    ) -> None:
        """End the run that ``statement`` matches, if it still does, and say so."""
        values: dict[str, Any] = {"state": state.value, "update_time": self._now()}
        if failure is not None:
            values |= {"failure_reason": failure.reason, "failure_message": failure.message}
        if connection.execute(statement.values(**values)).rowcount == 1:
            run = run_of(connection.execute(_by_id(id)).one())
            self._record(connection, RunEnded(run), run.traceparent)


def _taken_away(tenant: str, id: str, states: tuple[str, ...]) -> Update:
    """An update of a run in one of ``states`` that fences its worker off."""
    matches = update(RUNS).where(RUNS.c.tenant == tenant, RUNS.c.id == id, RUNS.c.state.in_(states))
    return matches.values(epoch=RUNS.c.epoch + 1, lease_owner=None, lease_expires=None)


def _waits() -> Any:
    return (RUNS.c.state == State.QUEUED.value) & RUNS.c.dataset.is_(None)


def _by_id(id: str) -> Select[Any]:
    return select(RUNS).where(RUNS.c.id == id)


def _newest(table: Table, tenant: str, before_id: str, count: int) -> Select[Any]:
    query = select(table).order_by(table.c.id.desc()).limit(count)
    if tenant != EVERY:
        query = query.where(table.c.tenant == tenant)
    return query.where(table.c.id < before_id) if before_id else query


def _insert(connection: Connection, table: Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
