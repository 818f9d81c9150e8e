"""Every transaction of searches for settings.

Methods that take a ``Lease`` are fenced: they raise ``LeaseLost`` and change nothing once the
search was taken over or cancelled. A tenant of ``-`` stands for every tenant.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, update

from millrace_registry.domain import EVERY, RequestKey, Serving, utc_now
from millrace_registry.rows import deployment_of
from millrace_registry.schema import DEPLOYMENTS, ENDPOINTS, SERVING_TRIALS, SERVING_TUNINGS
from millrace_registry.tuning.resource import (
    CANCELLED,
    PLAN,
    RESULT,
    UNENDED,
    Failure,
    Plan,
    Progress,
    Result,
    ServingTuning,
    State,
)
from millrace_registry.tuning.rows import put_trial, trials_of, tuning_of, values_of
from millrace_registry.tuning.trial import Trial
from millrace_registry.upsert import insert
from millrace_runtime import idempotency, leases
from millrace_runtime.database import Database
from millrace_runtime.errors import AlreadyExists
from millrace_runtime.leases import Lease

_T = SERVING_TUNINGS
_ENDPOINT_IS_GONE = timedelta(seconds=60)  # as for the routes


class TuningStore:
    """Rows of searches; also the source of the worker's work (``millrace_runtime.work``).

    ``endpoint``: where candidates are tried. Searches that were begun on another are left to its
    registry, while that is heard of.
    """

    def __init__(
        self,
        database: Database,
        *,
        endpoint: str,
        owner: str,
        lease_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._endpoint = endpoint
        self._owner = owner
        self._duration = timedelta(seconds=lease_seconds)
        self._now = now

    def add(self, tuning: ServingTuning, request: RequestKey) -> ServingTuning:
        """
        Raises:
            AlreadyExists: the deployment has a search that has not ended, or the request id was
                used for another request.
        """
        values = {**values_of(tuning), **idempotency.values(request.id, request.digest)}
        with self._database.transaction() as connection:
            added = insert(connection, _T).values(**values).on_conflict_do_nothing()
            if connection.execute(added.returning(_T.c.id)).first() is not None:
                return tuning
            made = idempotency.find_made(connection, _T, tuning.tenant, request.id, request.digest)
            if made is not None:
                return _read(connection, made)
            under_way = select(_T.c.id).where(_T.c.active_deployment == tuning.deployment)
            found = connection.execute(under_way).scalar_one_or_none()
        raise AlreadyExists(
            f"settings of deployment {tuning.deployment} are being searched for already: watch "
            f"or cancel {found or 'that search'} first",
            reason="TUNING_UNDER_WAY",
        )

    def get(self, tenant: str, id: str) -> ServingTuning | None:
        query = select(_T.c.id).where(_T.c.tenant == tenant, _T.c.id == id)
        with self._database.transaction() as connection:
            found = connection.execute(query).first()
            return None if found is None else _read(connection, id)

    def page(self, tenant: str, deployment: str, before_id: str, count: int) -> list[ServingTuning]:
        """The newest ``count`` searches older than ``before_id`` (empty: than anything), without
        their trials; of one deployment or (empty) of all."""
        query = select(_T).order_by(_T.c.id.desc()).limit(count)
        if tenant != EVERY:
            query = query.where(_T.c.tenant == tenant)
        if deployment:
            query = query.where(_T.c.deployment == deployment)
        if before_id:
            query = query.where(_T.c.id < before_id)
        with self._database.transaction() as connection:
            return [tuning_of(row) for row in connection.execute(query)]

    def cancel(self, tenant: str, id: str) -> ServingTuning | None:
        """Cancel a search and take its worker's lease away; one that has ended is returned
        unchanged. None: there is none."""
        unended = (
            update(_T)
            .where(_T.c.tenant == tenant, _T.c.id == id, _T.c.state.in_(UNENDED))
            .values(epoch=_T.c.epoch + 1, lease_owner=None, lease_expires=None)
            .values(**self._ended(State.CANCELLED, CANCELLED))
        )
        with self._database.transaction() as connection:
            connection.execute(unended)
        return self.get(tenant, id)

    def claim(self) -> Lease | None:
        now = self._now()
        others = select(ENDPOINTS.c.id).where(
            ENDPOINTS.c.id != self._endpoint, ENDPOINTS.c.update_time >= now - _ENDPOINT_IS_GONE
        )
        ours = or_(_T.c.endpoint.is_(None), _T.c.endpoint.not_in(others))
        with self._database.transaction() as connection:
            return leases.claim(
                connection,
                _T,
                _T.c.state.in_(UNENDED) & ours,
                owner=self._owner,
                now=now,
                duration=self._duration,
            )

    def renew(self, lease: Lease) -> Lease:
        with self._database.transaction() as connection:
            return leases.renew(connection, _T, lease, now=self._now(), duration=self._duration)

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as connection:
            leases.release(connection, _T, lease)

    def take_up(self, lease: Lease) -> ServingTuning:
        """What a lease is of, as far as it has come on this endpoint: what was measured on
        another one is forgotten."""
        elsewhere = (_T.c.id == lease.id) & (_T.c.endpoint != self._endpoint)
        with self._database.transaction() as connection:
            if connection.execute(select(_T.c.id).where(elsewhere)).first() is not None:
                self._write(connection, lease, plan=None, endpoint=self._endpoint)
                forgotten = delete(SERVING_TRIALS).where(SERVING_TRIALS.c.tuning == lease.id)
                connection.execute(forgotten)
            return _read(connection, lease.id)

    def start(self, lease: Lease, plan: Plan) -> ServingTuning:
        """The search begins, or goes on; what its first start said stays."""
        began = {
            "state": State.RUNNING.value,
            "endpoint": self._endpoint,
            "start_time": func.coalesce(_T.c.start_time, self._now()),
            "plan": PLAN.dump_python(plan, mode="json"),
            "failure_reason": None,
            "failure_message": None,
        }
        with self._database.transaction() as connection:
            self._write(connection, lease, **began)
            return _read(connection, lease.id)

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        with self._database.transaction() as connection:
            self._write(connection, lease, progress=asdict(progress))

    def record_trial(self, lease: Lease, trial: Trial, progress: Progress) -> None:
        """Keep a look, for users and for whoever takes the search over."""
        with self._database.transaction() as connection:
            self._write(connection, lease, progress=asdict(progress), attempts=0)
            put_trial(connection, lease.id, trial)

    def count_attempt(self, lease: Lease) -> int:
        """One more try has brought no look; how many in a row that makes."""
        with self._database.transaction() as connection:
            self._write(connection, lease, attempts=_T.c.attempts + 1)
            query = select(_T.c.attempts).where(_T.c.id == lease.id)
            return int(connection.execute(query).scalar_one())

    def put_off(
        self, lease: Lease, wait: timedelta, progress: Progress, failure: Failure | None = None
    ) -> None:
        """Let the search wait, and show what for. Ends the lease."""
        shown: dict[str, Any] = {"progress": asdict(progress)}
        if failure is not None:
            shown |= {"failure_reason": failure.reason, "failure_message": failure.message}
        with self._database.transaction() as connection:
            self._write(connection, lease, **shown)
            leases.put_off(connection, _T, lease, self._now() + wait)

    def succeed(self, lease: Lease, result: Result, serving: Serving | None) -> ServingTuning:
        """The search has ended; the winner's settings are written in the same transaction.

        Args:
            serving: of the deployment from now on; None: it stays as it is. So it does where its
                settings were changed since the search began.
        """
        with self._database.transaction() as connection:
            if serving is not None:
                is_written = self._change_deployment(connection, lease, serving)
                result = replace(result, is_written=is_written)
                if not is_written:
                    why = f"{result.reason}; not written: the deployment was changed meanwhile"
                    result = replace(result, reason=why)
            kept = RESULT.dump_python(result, mode="json")
            self._write(connection, lease, **self._ended(State.SUCCEEDED), result=kept)
            return _read(connection, lease.id)

    def fail(self, lease: Lease, failure: Failure) -> None:
        with self._database.transaction() as connection:
            self._write(connection, lease, **self._ended(State.FAILED, failure))

    def _change_deployment(self, connection: Connection, lease: Lease, serving: Serving) -> bool:
        tuning = _read(connection, lease.id)
        is_ours = (DEPLOYMENTS.c.tenant == tuning.tenant) & (DEPLOYMENTS.c.id == tuning.deployment)
        row = connection.execute(select(DEPLOYMENTS).where(is_ours)).first()
        assert tuning.plan is not None, "it has begun"
        if row is None or deployment_of(row).serving != tuning.plan.present:
            return False
        changed = (
            update(DEPLOYMENTS)
            .where(is_ours, DEPLOYMENTS.c.revision == row.revision)
            .values(serving=asdict(serving), revision=row.revision + 1, update_time=self._now())
        )
        return connection.execute(changed).rowcount == 1

    def _ended(self, state: State, failure: Failure | None = None) -> dict[str, Any]:
        values: dict[str, Any] = {
            "state": state.value,
            "finish_time": self._now(),
            "active_deployment": None,
        }
        if failure is not None:
            values |= {"failure_reason": failure.reason, "failure_message": failure.message}
        return values

    def _write(self, connection: Connection, lease: Lease, **values: Any) -> None:
        """One fenced write; what has ended stays as it is, whoever holds its lease."""
        unended = leases.fenced(_T, lease).where(_T.c.state.in_(UNENDED))
        leases.require_held(connection.execute(unended.values(**values)), lease)


def _read(connection: Connection, id: str) -> ServingTuning:
    row = connection.execute(select(_T).where(_T.c.id == id)).one()
    return tuning_of(row, trials_of(connection, id))
