"""The tables of webhooks: endpoints, one row a fact and endpoint, and one an attempt."""

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from millrace_runtime.database import UtcDateTime
from millrace_runtime.idempotency import request_columns
from millrace_runtime.leases import lease_columns


def endpoints_table(metadata: MetaData) -> Table:
    """``subscribed``: ``[[pattern, since], …]``; ``secrets``: ``[[salt, key, expires], …]``."""
    return Table(
        "webhook_endpoints",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("tenant", String(64), nullable=False),
        Column("name", String(256), nullable=False),
        Column("url", String(2048), nullable=False),
        Column("subscribed", JSON, nullable=False),
        Column("secrets", JSON, nullable=False),
        Column("create_time", UtcDateTime, nullable=False),
        Column("update_time", UtcDateTime, nullable=False),
        Column("disable_reason", String(1024)),
        Column("disable_time", UtcDateTime),
        Column("success_time", UtcDateTime),
        *request_columns(),
        Index("webhook_endpoints_tenant_id", "tenant", "id"),
    )


def deliveries_table(metadata: MetaData) -> Table:
    """``fact_time``: when the fact became true; what is older than the retention has no row."""
    return Table(
        "webhook_deliveries",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("endpoint_id", String(64), ForeignKey("webhook_endpoints.id"), nullable=False),
        Column("tenant", String(64), nullable=False),
        Column("fact_id", String(64), nullable=False),
        Column("fact_time", UtcDateTime, nullable=False),
        Column("kind", String(128), nullable=False),
        Column("document", Text, nullable=False),
        Column("traceparent", String(64), nullable=False),
        Column("status", String(16), nullable=False),
        Column("tries", Integer, nullable=False),
        Column("attempt_count", Integer, nullable=False),
        Column("create_time", UtcDateTime, nullable=False),
        Column("round_time", UtcDateTime, nullable=False),
        Column("next_attempt_time", UtcDateTime),
        *lease_columns(),
        UniqueConstraint("endpoint_id", "fact_id"),
        Index("webhook_deliveries_due", "status", "next_attempt_time"),
        Index("webhook_deliveries_endpoint_id", "endpoint_id", "id"),
        Index("webhook_deliveries_fact_time", "fact_time"),
    )


def attempts_table(metadata: MetaData) -> Table:
    return Table(
        "webhook_attempts",
        metadata,
        Column("delivery_id", String(64), ForeignKey("webhook_deliveries.id"), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("time", UtcDateTime, nullable=False),
        Column("duration_seconds", Float, nullable=False),
        Column("status_code", Integer),
        Column("error", Text),
        Column("response_body", Text, nullable=False),
    )
