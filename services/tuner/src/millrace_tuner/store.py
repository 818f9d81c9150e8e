"""Every transaction of the service: state, the facts it causes and what is told, together.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
work was taken over, cancelled or paused. A tenant of ``-`` stands for every tenant, a job of
``-`` for every job.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from millrace_runtime import idempotency, leases, names
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease
from millrace_tuner.domain import (
    FINISHED,
    Change,
    Checkpoint,
    CheckpointFinished,
    Fact,
    Job,
    JobEvent,
    JobState,
    RecordedEvent,
    RequestKey,
    Step,
    utc_now,
)
from millrace_tuner.rows import (
    checkpoint_of,
    checkpoint_values,
    event_of,
    job_of,
    job_values,
)
from millrace_tuner.schema import CHECKPOINTS, JOB_EVENTS, JOBS
from millrace_tuner.steps import checkpoint_event, created_events

RecordFact = Callable[[Connection, Fact], None]
"""Adds a fact to a transaction."""

ANY = "-"
_REVOKED = "revoked"


class JobStore:
    """Jobs, their checkpoints and events; also the source of the workers' work."""

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

    def made_by(self, tenant: str, request: RequestKey) -> Job | None:
        """The job that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        with self._database.transaction() as connection:
            return _made_by(connection, tenant, request)

    def add(self, job: Job, request: RequestKey) -> Job:
        """Add a QUEUED job, or return the one that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        try:
            return self._add(job, request)
        except IntegrityError:
            # Two requests with one id may both find nothing made (PostgreSQL); the later one's
            # insert breaks the constraint, and finds what the earlier made when tried again.
            return self._add(job, request)

    def _add(self, job: Job, request: RequestKey) -> Job:
        with self._database.transaction() as connection:
            made = _made_by(connection, job.tenant, request)
            if made is not None:
                return made
            values = {**job_values(job), **idempotency.values(request.id, request.digest)}
            connection.execute(JOBS.insert().values(**values))
            self._tell(connection, job, created_events(job))
        return job

    def get(self, tenant: str, id: str) -> Job | None:
        with self._database.transaction() as connection:
            row = connection.execute(_job(tenant, id)).first()
        return None if row is None else job_of(row)

    def page(
        self, tenant: str, before_id: str, count: int, metadata: Mapping[str, str] | None = None
    ) -> list[Job]:
        """The newest ``count`` jobs older than ``before_id`` (empty: than anything), of all or of
        those whose metadata hold ``metadata`` (an empty one: that have none)."""
        query = _of_tenant(select(JOBS), JOBS, tenant).order_by(JOBS.c.id.desc())
        if before_id:
            query = query.where(JOBS.c.id < before_id)
        if metadata is None:
            query = query.limit(count)
        with self._database.transaction() as connection:
            jobs = (job_of(row) for row in connection.execute(query))
            return list(islice((job for job in jobs if _holds(job.metadata, metadata)), count))

    def awaiting_outcome(self) -> list[Job]:
        """Jobs whose training has ended and whose final checkpoint's fate is not known."""
        query = select(JOBS).where(
            JOBS.c.state == JobState.RUNNING,
            JOBS.c.trained_time.is_not(None),
            JOBS.c.outcome_reason.is_(None),
        )
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query.order_by(JOBS.c.id))]

    def finished_since(self, time: datetime) -> list[Job]:
        query = select(JOBS).where(JOBS.c.state.in_(FINISHED), JOBS.c.finish_time >= time)
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def count_by_state(self) -> dict[str, int]:
        query = select(JOBS.c.state, func.count()).group_by(JOBS.c.state)
        with self._database.transaction() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def change(self, tenant: str, id: str, step: Step) -> Job | None:
        """Let a job take a step; None when there is no such job.

        Raises:
            WrongState: what ``step`` raises; nothing has changed.
        """
        with self._database.transaction() as connection:
            row = connection.execute(_job(tenant, id).with_for_update()).first()
            if row is None:
                return None
            job = job_of(row)
            change = step(job)
            if change.job != job:
                values = job_values(change.job)
                if change.revokes_lease:
                    # Its time stays: until the worker has stopped its job or that time is up,
                    # nobody else may write to the job's directory.
                    values |= {"epoch": JOBS.c.epoch + 1, "lease_owner": _REVOKED}
                connection.execute(update(JOBS).where(JOBS.c.id == id).values(**values))
            self._follow(connection, change)
            return change.job

    def change_leased(self, lease: Lease, step: Step) -> Job:
        """Let the job of ``lease`` take a step.

        Raises:
            LeaseLost
        """
        with self._database.transaction() as connection:
            row = _lock_leased(connection, lease)
            change = step(job_of(row))
            fenced = leases.fenced(JOBS, lease).values(**job_values(change.job))
            leases.require_held(connection.execute(fenced), lease)
            self._follow(connection, change)
            return change.job

    def _follow(self, connection: Connection, change: Change) -> None:
        for fact in change.facts:
            self._record(connection, fact)
        self._tell(connection, change.job, change.events)

    def _tell(self, connection: Connection, job: Job, events: Sequence[JobEvent]) -> None:
        for event in events:
            id = names.new_id("ftevent")
            values = {
                "id": id,
                "tenant": job.tenant,
                "job": job.id,
                "key": event.key or id,
                "level": event.level,
                "type": event.type,
                "message": event.message,
                "metrics": dict(event.metrics),
                "create_time": self._now(),
            }
            _insert_once(connection, JOB_EVENTS, values, ("job", "key"))

    def events(self, tenant: str, job: str, before: int | None, count: int) -> list[RecordedEvent]:
        """A job's newest ``count`` events of those before a sequence number, newest first."""
        query = (
            select(JOB_EVENTS)
            .where(JOB_EVENTS.c.tenant == tenant, JOB_EVENTS.c.job == job)
            .order_by(JOB_EVENTS.c.sequence.desc())
            .limit(count)
        )
        if before is not None:
            query = query.where(JOB_EVENTS.c.sequence < before)
        with self._database.transaction() as connection:
            return [event_of(row) for row in connection.execute(query)]

    def event_sequence(self, job: str, id: str) -> int | None:
        """The place of an event in its job's history; None when there is no such event."""
        query = select(JOB_EVENTS.c.sequence).where(JOB_EVENTS.c.job == job, JOB_EVENTS.c.id == id)
        with self._database.transaction() as connection:
            sequence = connection.execute(query).scalar()
        return None if sequence is None else int(sequence)

    def add_checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Checkpoint:
        """Record a checkpoint and its fact; one that is known is returned as it is known.

        Raises:
            LeaseLost
        """
        known = select(CHECKPOINTS).where(
            CHECKPOINTS.c.job == checkpoint.job, CHECKPOINTS.c.digest == checkpoint.content.digest
        )
        with self._database.transaction() as connection:
            job = job_of(_lock_leased(connection, lease))
            row = connection.execute(known).first()
            if row is not None:
                return checkpoint_of(row)
            checkpoint = replace(checkpoint, served=job.plan.is_served)
            connection.execute(CHECKPOINTS.insert().values(**checkpoint_values(checkpoint)))
            connection.execute(leases.fenced(JOBS, lease).values(attempts=0))  # it is progress
            if checkpoint.served:
                self._record(connection, CheckpointFinished(job, checkpoint))
            self._tell(connection, job, (checkpoint_event(checkpoint),))
        return checkpoint

    def checkpoint(self, tenant: str, job: str, id: str) -> Checkpoint | None:
        query = select(CHECKPOINTS).where(
            CHECKPOINTS.c.tenant == tenant, CHECKPOINTS.c.job == job, CHECKPOINTS.c.id == id
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else checkpoint_of(row)

    def final_checkpoint(self, job: str) -> Checkpoint | None:
        query = select(CHECKPOINTS).where(CHECKPOINTS.c.job == job, CHECKPOINTS.c.final)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else checkpoint_of(row)

    def made_model(self, tenant: str, reference: str) -> Job | None:
        """The job of that id, or the one that made the model of that id."""
        query = select(JOBS).where(
            JOBS.c.tenant == tenant, or_(JOBS.c.id == reference, JOBS.c.tuned_model == reference)
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else job_of(row)

    def checkpoints(self, tenant: str, job: str, before_id: str, count: int) -> list[Checkpoint]:
        """The newest ``count`` checkpoints older than ``before_id`` (empty: than anything)."""
        query = _of_tenant(select(CHECKPOINTS), CHECKPOINTS, tenant)
        query = query.order_by(CHECKPOINTS.c.id.desc()).limit(count)
        if job != ANY:
            query = query.where(CHECKPOINTS.c.job == job)
        if before_id:
            query = query.where(CHECKPOINTS.c.id < before_id)
        with self._database.transaction() as connection:
            return [checkpoint_of(row) for row in connection.execute(query)]

    def claim(self) -> Lease | None:
        """A job to be trained."""
        return self._claim(
            and_(
                JOBS.c.state.in_((JobState.QUEUED, JobState.RUNNING)),
                JOBS.c.validate_time.is_not(None),
                JOBS.c.trained_time.is_(None),
            )
        )

    def claim_unvalidated(self) -> Lease | None:
        """A job whose files are to be validated."""
        unvalidated = JOBS.c.validate_time.is_(None)
        return self._claim(and_(JOBS.c.state == JobState.QUEUED, unvalidated))

    def _claim(self, wanted: ColumnElement[bool]) -> Lease | None:
        with self._database.transaction() as connection:
            return leases.claim(
                connection,
                JOBS,
                wanted,
                owner=self._owner,
                now=self._now(),
                duration=self._duration,
            )

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return leases.renew(connection, JOBS, lease, now=self._now(), duration=self._duration)

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, JOBS, lease)

    def put_off(self, lease: Lease, wait: timedelta) -> None:
        """Let the job wait before it is tried again. Ends the lease.

        Raises:
            LeaseLost
        """
        with self._database.transaction() as connection:
            leases.put_off(connection, JOBS, lease, self._now() + wait)

    def let_go(self, lease: Lease) -> None:
        """The work of ``lease`` has stopped: nothing writes to the job's directory any more.

        Gives the row back, also when pausing or cancelling has taken the lease away meanwhile.
        """
        held = JOBS.c.epoch == lease.epoch
        revoked = and_(JOBS.c.epoch == lease.epoch + 1, JOBS.c.lease_owner == _REVOKED)
        given_back = update(JOBS).where(JOBS.c.id == lease.id, or_(held, revoked))
        with self._database.transaction() as connection:
            connection.execute(given_back.values(lease_owner=None, lease_expires=None))


def _made_by(connection: Connection, tenant: str, request: RequestKey) -> Job | None:
    made = idempotency.find_made(connection, JOBS, tenant, request.id, request.digest)
    if made is None:
        return None
    return job_of(connection.execute(select(JOBS).where(JOBS.c.id == made)).one())


def _holds(metadata: Mapping[str, str], wanted: Mapping[str, str] | None) -> bool:
    """Whether all that is wanted is there; an empty mapping wants that there is none."""
    if wanted is None:
        return True
    return wanted.items() <= metadata.items() if wanted else not metadata


def _job(tenant: str, id: str) -> Select[Any]:
    return select(JOBS).where(JOBS.c.tenant == tenant, JOBS.c.id == id)


def _of_tenant(query: Select[Any], table: Table, tenant: str) -> Select[Any]:
    return query if tenant == ANY else query.where(table.c.tenant == tenant)


def _lock_leased(connection: Connection, lease: Lease) -> Row[Any]:
    """The leased row, locked until the transaction ends.

    Raises:
        LeaseLost: its epoch is another.
    """
    query = select(JOBS).where(JOBS.c.id == lease.id, JOBS.c.epoch == lease.epoch)
    row = connection.execute(query.with_for_update()).first()
    if row is None:
        raise leases.LeaseLost(f"{lease.id} is no longer ours (epoch {lease.epoch})")
    return row


def _insert_once(
    connection: Connection, table: Table, values: dict[str, Any], key: Sequence[str]
) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**values)
    connection.execute(statement.on_conflict_do_nothing(index_elements=list(key)))
