"""Deliveries as work: rows with a lease and an epoch (``millrace_runtime.leases``).

A lease lasts as long as an attempt can, so nobody renews it: who is killed amid an attempt leaves
it to others when it has run out, or at once where they see that its process has ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from millrace_gateway.store import WEBHOOK_ATTEMPTS, WEBHOOK_DELIVERIES, WEBHOOK_ENDPOINTS
from millrace_gateway.webhooks import rows
from millrace_gateway.webhooks.domain import Answer, Attempt, Delivery, Endpoint, Status, Verdict
from millrace_gateway.webhooks.store import disable
from millrace_runtime import leases
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease

# Of one endpoint, in all gateways: a slow one holds up its own.
MOST_AT_ONE_ENDPOINT = 4


@dataclass(frozen=True)
class Due:
    """A delivery that is ours to attempt."""

    lease: Lease
    endpoint: Endpoint
    delivery: Delivery
    document: str


class DeliveryQueue:
    """What is due, given to one gateway at a time.

    ``lease_seconds``: longer than an attempt with its transactions takes.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        lease_seconds: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._owner = owner
        self._duration = timedelta(seconds=lease_seconds)
        self._now = now

    def take(self) -> Due | None:
        """The oldest delivery that is due, tenants first that have none under way."""
        now, table = self._now(), WEBHOOK_DELIVERIES
        other = table.alias()
        held = select(other.c.tenant).where(other.c.lease_expires >= now)
        with self._database.transaction() as connection:
            lease = leases.claim(
                connection,
                table,
                _is_due(now),
                owner=self._owner,
                now=now,
                duration=self._duration,
                preferred=table.c.tenant.not_in(held),
            )
            return None if lease is None else _due(connection, lease)

    def conclude(self, due: Due, answer: Answer, verdict: Verdict) -> Attempt:
        """Note an attempt and what follows from it; see ``_fault`` for the endpoint's end.

        Raises:
            LeaseLost: it was taken over, or its endpoint is disabled or gone; nothing is noted.
        """
        now, delivery = self._now(), due.delivery
        attempt = Attempt(
            delivery.attempt_count + 1,
            now - timedelta(seconds=answer.duration_seconds),
            answer.duration_seconds,
            answer.status_code,
            answer.error,
            answer.body,
        )
        with self._database.transaction() as connection:
            succeeded = _lock_endpoint(connection, due.endpoint.id)
            self._move(connection, due, verdict, now)
            _note(connection, delivery.id, attempt)
            if answer.is_success:
                _mark_success(connection, due.endpoint.id, now)
            elif fault := _fault(delivery, answer, verdict, succeeded):
                disable(connection, due.endpoint.id, fault, now)
        return attempt

    def release(self, due: Due) -> None:
        """Give a delivery back whose attempt was broken off."""
        with self._database.transaction() as connection:
            leases.release(connection, WEBHOOK_DELIVERIES, due.lease)

    def _move(self, connection: Connection, due: Due, verdict: Verdict, now: datetime) -> None:
        moved = leases.fenced(WEBHOOK_DELIVERIES, due.lease).values(
            status=verdict.status.value,
            tries=due.delivery.tries + 1,
            attempt_count=due.delivery.attempt_count + 1,
            next_attempt_time=rows.after_retry(now, verdict.retry_seconds),
            # Fences out whoever else holds the same lease, such as a process that was copied.
            epoch=due.lease.epoch + 1,
            lease_owner=None,
            lease_expires=None,
        )
        leases.require_held(connection.execute(moved), due.lease)


def _is_due(now: datetime) -> ColumnElement[bool]:
    table, other = WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.alias()
    under_way = (
        select(func.count())
        .where(other.c.endpoint_id == table.c.endpoint_id, other.c.lease_expires >= now)
        .scalar_subquery()
    )
    return and_(
        table.c.status == Status.PENDING.value,
        table.c.next_attempt_time <= now,
        under_way < MOST_AT_ONE_ENDPOINT,
    )


def _due(connection: Connection, lease: Lease) -> Due:
    table = WEBHOOK_DELIVERIES
    row = connection.execute(select(table).where(table.c.id == lease.id)).one()
    endpoint = connection.execute(
        select(WEBHOOK_ENDPOINTS).where(WEBHOOK_ENDPOINTS.c.id == row.endpoint_id)
    ).one()
    return Due(lease, rows.endpoint(endpoint), rows.delivery(row), row.document)


def _lock_endpoint(connection: Connection, endpoint_id: str) -> datetime | None:
    """Take the endpoint's row; when it last took a delivery."""
    table = WEBHOOK_ENDPOINTS
    query = select(table.c.success_time).where(table.c.id == endpoint_id).with_for_update()
    found: datetime | None = connection.execute(query).scalar()
    return found


def _note(connection: Connection, delivery_id: str, attempt: Attempt) -> None:
    connection.execute(
        WEBHOOK_ATTEMPTS.insert().values(
            delivery_id=delivery_id,
            number=attempt.number,
            time=attempt.time,
            duration_seconds=attempt.duration_seconds,
            status_code=attempt.status_code,
            error=attempt.error,
            response_body=attempt.response_body,
        )
    )


def _mark_success(connection: Connection, endpoint_id: str, now: datetime) -> None:
    table = WEBHOOK_ENDPOINTS
    connection.execute(update(table).where(table.c.id == endpoint_id).values(success_time=now))


def _fault(
    delivery: Delivery, answer: Answer, verdict: Verdict, succeeded: datetime | None
) -> str | None:
    """Why the endpoint is to be disabled: it is gone, or took nothing for a whole round of
    attempts (days). One event that it cannot take, among others that it takes, is no reason."""
    if answer.is_gone:
        return "it answered 410 Gone"
    if verdict.status is not Status.FAILED or (succeeded and succeeded >= delivery.round_time):
        return None
    return f"it took nothing since {delivery.round_time:%Y-%m-%d %H:%M} UTC; last, {answer.said()}"
