"""Rows of webhooks' tables, to and from the domain."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from millrace_gateway.webhooks import event
from millrace_gateway.webhooks.domain import (
    Attempt,
    Delivery,
    Endpoint,
    Secret,
    Status,
    Subscribed,
)
from millrace_runtime import names, telemetry
from millrace_runtime.cloudevent import Event


def subscribed_column(patterns: Sequence[Subscribed]) -> list[list[str]]:
    return [[one.pattern, one.since.isoformat()] for one in patterns]


def secrets_column(secrets: Sequence[Secret]) -> list[list[str | None]]:
    return [
        [one.salt, one.key, one.expire_time.isoformat() if one.expire_time else None]
        for one in secrets
    ]


def endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        url=row.url,
        subscribed=[
            Subscribed(pattern, datetime.fromisoformat(since)) for pattern, since in row.subscribed
        ],
        secrets=[
            Secret(salt, key, datetime.fromisoformat(expires) if expires else None)
            for salt, key, expires in row.secrets
        ],
        create_time=row.create_time,
        update_time=row.update_time,
        disable_reason=row.disable_reason,
        disable_time=row.disable_time,
    )


def new_delivery(endpoint_id: str, fact: Event, now: datetime) -> dict[str, Any]:
    """A delivery that is due at once; it stays in the fact's trace."""
    return {
        "id": names.new_id("whd"),
        "endpoint_id": endpoint_id,
        "tenant": fact.tenant,
        "fact_id": fact.id,
        "fact_time": fact.time,
        "kind": event.type_of(fact.fact),
        "document": event.document(fact),
        "traceparent": telemetry.current_traceparent() or fact.traceparent,
        "status": Status.PENDING.value,
        "tries": 0,
        "attempt_count": 0,
        "create_time": now,
        "round_time": now,
        "next_attempt_time": now,
        "epoch": 0,
    }


def delivery(row: Row[Any], attempts: Sequence[Attempt] = ()) -> Delivery:
    return Delivery(
        id=row.id,
        endpoint_id=row.endpoint_id,
        event_id=event.event_id(row.fact_id),
        kind=row.kind,
        status=Status(row.status),
        tries=row.tries,
        attempt_count=row.attempt_count,
        create_time=row.create_time,
        round_time=row.round_time,
        next_attempt_time=row.next_attempt_time,
        traceparent=row.traceparent,
        attempts=attempts,
    )


def attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        time=row.time,
        duration_seconds=row.duration_seconds,
        status_code=row.status_code,
        error=row.error,
        response_body=row.response_body,
    )


def after_retry(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)
