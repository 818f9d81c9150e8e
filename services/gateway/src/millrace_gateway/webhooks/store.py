"""Every transaction of webhooks' endpoints, and of the facts that are for them.

Whoever changes an endpoint and its deliveries takes the endpoint's row first, so that no two
transactions wait for each other. What concerns attempts is in ``queue.py``.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from millrace_gateway.store import WEBHOOK_ATTEMPTS, WEBHOOK_DELIVERIES, WEBHOOK_ENDPOINTS
from millrace_gateway.webhooks import event, rows
from millrace_gateway.webhooks.domain import (
    SECRET_GRACE,
    Attempt,
    Change,
    Delivery,
    Endpoint,
    Secret,
    Status,
    Subscribed,
    Wish,
)
from millrace_runtime import idempotency, names
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import Database
from millrace_runtime.errors import Aborted, FailedPrecondition

MOST_ENDPOINTS = 100
BY_REQUEST = "disabled by request"
_MOST_SECRETS = 8


class WebhookStore:
    """Endpoints and the history of their deliveries.

    ``retention_seconds``: how long a delivery that has ended is kept, counted from its fact. A
    fact that comes later than that (of a stream that was made anew) has had its row already.
    """

    def __init__(
        self,
        database: Database,
        *,
        retention_seconds: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._retention_seconds = retention_seconds
        self._now = now

    def add(
        self, tenant: str, wish: Wish, secret: Secret, request_id: str, digest: str
    ) -> Endpoint:
        """A new endpoint, or the one that the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
            FailedPrecondition: the tenant has as many as it may have.
        """
        now = self._now()
        with self._database.transaction() as connection:
            made = idempotency.find_made(connection, WEBHOOK_ENDPOINTS, tenant, request_id, digest)
            if made is not None:
                return _load(connection, tenant, made)
            _require_room(connection, tenant)
            endpoint_id = names.new_id("whe")
            subscribed = [Subscribed(pattern, now) for pattern in wish.patterns]
            values = {
                "id": endpoint_id,
                "tenant": tenant,
                "name": wish.name,
                "url": wish.url,
                "subscribed": rows.subscribed_column(subscribed),
                "secrets": rows.secrets_column([secret]),
                "create_time": now,
                "update_time": now,
                **({} if wish.is_enabled else _disabled(BY_REQUEST, now)),
                **idempotency.values(request_id, digest),
            }
            connection.execute(WEBHOOK_ENDPOINTS.insert().values(**values))
            return _load(connection, tenant, endpoint_id)

    def get(self, tenant: str, endpoint_id: str) -> Endpoint | None:
        with self._database.transaction() as connection:
            return _find(connection, tenant, endpoint_id)

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Endpoint]:
        """At most ``size`` endpoints, newest first, older than ``before_id`` if it is given."""
        query = select(WEBHOOK_ENDPOINTS).where(WEBHOOK_ENDPOINTS.c.tenant == tenant)
        if before_id:
            query = query.where(WEBHOOK_ENDPOINTS.c.id < before_id)
        query = query.order_by(WEBHOOK_ENDPOINTS.c.id.desc()).limit(size)
        with self._database.transaction() as connection:
            return [rows.endpoint(row) for row in connection.execute(query)]

    def change(self, tenant: str, endpoint_id: str, change: Change) -> Endpoint | None:
        """Change an endpoint; one that is enabled again wants what happens from now on.

        Disabled, it fails what was pending; None when there is none.
        """
        now = self._now()
        with self._database.transaction() as connection:
            found = _find(connection, tenant, endpoint_id, lock=True)
            if found is None:
                return None
            values = _changed(found, change, now)
            if change.is_enabled is False and found.is_enabled:
                disable(connection, endpoint_id, BY_REQUEST, now)
            if values:
                connection.execute(_endpoint_update(endpoint_id).values(**values, update_time=now))
            return _load(connection, tenant, endpoint_id)

    def rotate(
        self, tenant: str, endpoint_id: str, secret: Secret, keeps_old: bool
    ) -> Endpoint | None:
        """Sign with ``secret`` from now on, and with those before it for a day or no more."""
        now = self._now()
        with self._database.transaction() as connection:
            found = _find(connection, tenant, endpoint_id, lock=True)
            if found is None:
                return None
            ends = now + SECRET_GRACE
            # What was made with another key can sign nothing, and must not stop what can.
            old = [
                Secret(one.salt, one.key, min(one.expire_time or ends, ends))
                for one in found.live_secrets(now)
                if keeps_old and one.key == secret.key
            ]
            secrets = rows.secrets_column([secret, *old][:_MOST_SECRETS])
            connection.execute(
                _endpoint_update(endpoint_id).values(secrets=secrets, update_time=now)
            )
            return _load(connection, tenant, endpoint_id)

    def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Delete an endpoint with its history; what is on its way ends there."""
        of_endpoint = WEBHOOK_DELIVERIES.c.endpoint_id == endpoint_id
        with self._database.transaction() as connection:
            if _find(connection, tenant, endpoint_id, lock=True) is None:
                return False
            _delete_deliveries(connection, of_endpoint)
            connection.execute(
                delete(WEBHOOK_ENDPOINTS).where(WEBHOOK_ENDPOINTS.c.id == endpoint_id)
            )
            return True

    def has_any(self) -> bool:
        """Whether there is an endpoint, of whatever tenant."""
        with self._database.transaction() as connection:
            return bool(connection.execute(select(exists(select(WEBHOOK_ENDPOINTS)))).scalar())

    def record(self, fact: Event) -> int:
        """Note a fact for every endpoint that wants it, and say for how many it was new."""
        now = self._now()
        if (now - fact.time).total_seconds() > self._retention_seconds:
            return 0
        # Shared: an endpoint that is disabled at this moment is waited for, or waits.
        candidates = (
            select(WEBHOOK_ENDPOINTS)
            .where(WEBHOOK_ENDPOINTS.c.tenant == fact.tenant)
            .where(WEBHOOK_ENDPOINTS.c.disable_reason.is_(None))
            .order_by(WEBHOOK_ENDPOINTS.c.id)
            .with_for_update(read=True)
        )
        kind = event.type_of(fact.fact)
        with self._database.transaction() as connection:
            endpoints = [rows.endpoint(row) for row in connection.execute(candidates)]
            found = [
                rows.new_delivery(one.id, fact, now)
                for one in endpoints
                if one.wants(kind, fact.time)
            ]
            return sum(_add_once(connection, each) for each in found)

    def deliveries(
        self, endpoint_id: str, status: Status | None, size: int, before_id: str
    ) -> Sequence[Delivery]:
        """At most ``size`` deliveries with their attempts, newest first."""
        table = WEBHOOK_DELIVERIES
        query = select(table).where(table.c.endpoint_id == endpoint_id)
        if status is not None:
            query = query.where(table.c.status == status.value)
        if before_id:
            query = query.where(table.c.id < before_id)
        with self._database.transaction() as connection:
            found = connection.execute(query.order_by(table.c.id.desc()).limit(size)).all()
            attempts = _attempts(connection, [row.id for row in found])
        return [rows.delivery(row, attempts.get(row.id, ())) for row in found]

    def delivery(self, endpoint_id: str, delivery_id: str) -> tuple[Delivery, str] | None:
        """A delivery with its attempts, and the event that it carries."""
        with self._database.transaction() as connection:
            row = connection.execute(_one(endpoint_id, delivery_id)).first()
            if row is None:
                return None
            attempts = _attempts(connection, [row.id])
            return rows.delivery(row, attempts.get(row.id, ())), str(row.document)

    def redeliver(self, endpoint_id: str, delivery_id: str) -> bool:
        """Begin anew with a delivery, at once, whatever became of it; False: there is none.

        Raises:
            FailedPrecondition: its endpoint is disabled.
            Aborted: an attempt is under way.
        """
        now, table = self._now(), WEBHOOK_DELIVERIES
        values = {"status": Status.PENDING.value, "tries": 0, "round_time": now}
        with self._database.transaction() as connection:
            endpoint = connection.execute(
                select(WEBHOOK_ENDPOINTS.c.disable_reason)
                .where(WEBHOOK_ENDPOINTS.c.id == endpoint_id)
                .with_for_update()
            ).first()
            row = connection.execute(_one(endpoint_id, delivery_id).with_for_update()).first()
            if endpoint is None or row is None:
                return False
            if endpoint.disable_reason is not None:
                raise FailedPrecondition(
                    "the endpoint is disabled; enable it first", reason="WEBHOOK_DISABLED"
                )
            if row.lease_expires is not None and row.lease_expires >= now:
                raise Aborted("an attempt is under way; wait for it", reason="DELIVERY_UNDER_WAY")
            connection.execute(
                update(table)
                .where(table.c.id == delivery_id)
                .values(**values, next_attempt_time=now, epoch=table.c.epoch + 1)
            )
            return True

    def forget(self) -> int:
        """Delete deliveries that have ended and are older than the retention; say how many."""
        table = WEBHOOK_DELIVERIES
        oldest = datetime.fromtimestamp(self._now().timestamp() - self._retention_seconds, UTC)
        old = (table.c.fact_time < oldest) & (table.c.status != Status.PENDING.value)
        with self._database.transaction() as connection:
            return _delete_deliveries(connection, old)

    def count_by_status(self) -> dict[str, int]:
        status = WEBHOOK_DELIVERIES.c.status
        with self._database.transaction() as connection:
            found = connection.execute(select(status, func.count()).group_by(status))
            return {row[0]: row[1] for row in found}


def disable(connection: Connection, endpoint_id: str, reason: str, now: datetime) -> None:
    """Post nothing any more: what is pending fails, and attempts under way count no more.

    Whoever calls holds the endpoint's row.
    """
    table = WEBHOOK_DELIVERIES
    connection.execute(_endpoint_update(endpoint_id).values(**_disabled(reason, now)))
    connection.execute(
        update(table)
        .where(table.c.endpoint_id == endpoint_id, table.c.status == Status.PENDING.value)
        .values(status=Status.FAILED.value, next_attempt_time=None, epoch=table.c.epoch + 1)
        .values(lease_owner=None, lease_expires=None)
    )


def _disabled(reason: str, now: datetime) -> dict[str, Any]:
    return {"disable_reason": reason[:1024], "disable_time": now, "update_time": now}


def _changed(found: Endpoint, change: Change, now: datetime) -> dict[str, Any]:
    """The columns that differ, but for disabling."""
    is_enabled_again = bool(change.is_enabled) and not found.is_enabled
    since = {} if is_enabled_again else {one.pattern: one.since for one in found.subscribed}
    patterns = change.patterns or [one.pattern for one in found.subscribed]
    subscribed = [Subscribed(pattern, since.get(pattern, now)) for pattern in patterns]
    values: dict[str, Any] = {}
    if is_enabled_again:
        values |= {"disable_reason": None, "disable_time": None}
    if subscribed != list(found.subscribed):
        values["subscribed"] = rows.subscribed_column(subscribed)
    if change.name is not None and change.name != found.name:
        values["name"] = change.name
    if change.url is not None and change.url != found.url:
        values["url"] = change.url
    return values


def _require_room(connection: Connection, tenant: str) -> None:
    query = select(func.count()).where(WEBHOOK_ENDPOINTS.c.tenant == tenant)
    if connection.execute(query).scalar_one() >= MOST_ENDPOINTS:
        raise FailedPrecondition(
            f"a tenant has at most {MOST_ENDPOINTS} webhook endpoints; delete one",
            reason="TOO_MANY_WEBHOOKS",
        )


def _find(
    connection: Connection, tenant: str, endpoint_id: str, *, lock: bool = False
) -> Endpoint | None:
    query = select(WEBHOOK_ENDPOINTS).where(
        WEBHOOK_ENDPOINTS.c.tenant == tenant, WEBHOOK_ENDPOINTS.c.id == endpoint_id
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    return None if row is None else rows.endpoint(row)


def _load(connection: Connection, tenant: str, endpoint_id: str) -> Endpoint:
    found = _find(connection, tenant, endpoint_id)
    assert found is not None, "it was there in this transaction"
    return found


def _endpoint_update(endpoint_id: str) -> Any:
    return update(WEBHOOK_ENDPOINTS).where(WEBHOOK_ENDPOINTS.c.id == endpoint_id)


def _one(endpoint_id: str, delivery_id: str) -> Any:
    table = WEBHOOK_DELIVERIES
    return select(table).where(table.c.endpoint_id == endpoint_id, table.c.id == delivery_id)


def _add_once(connection: Connection, values: dict[str, Any]) -> bool:
    """Whether the delivery is new: a fact is for an endpoint once, however often it comes."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = (
        upsert(WEBHOOK_DELIVERIES)
        .values(**values)
        .on_conflict_do_nothing(index_elements=["endpoint_id", "fact_id"])
        .returning(WEBHOOK_DELIVERIES.c.id)
    )
    return connection.execute(statement).first() is not None


def _attempts(connection: Connection, deliveries: Sequence[str]) -> dict[str, list[Attempt]]:
    table = WEBHOOK_ATTEMPTS
    query = select(table).where(table.c.delivery_id.in_(deliveries)).order_by(table.c.number)
    found: dict[str, list[Attempt]] = {}
    for row in connection.execute(query):
        found.setdefault(row.delivery_id, []).append(rows.attempt(row))
    return found


def _delete_deliveries(connection: Connection, which: ColumnElement[bool]) -> int:
    chosen = select(WEBHOOK_DELIVERIES.c.id).where(which)
    connection.execute(delete(WEBHOOK_ATTEMPTS).where(WEBHOOK_ATTEMPTS.c.delivery_id.in_(chosen)))
    return connection.execute(delete(WEBHOOK_DELIVERIES).where(which)).rowcount
