"""Webhooks: endpoints, deliveries and their attempts."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("subscribed", sa.JSON, nullable=False),
        sa.Column("secrets", sa.JSON, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
        sa.Column("disable_reason", sa.String(1024)),
        sa.Column("disable_time", UtcDateTime),
        sa.Column("success_time", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("webhook_endpoints_tenant_id", "webhook_endpoints", ["tenant", "id"])
    _create_deliveries()
    op.create_table(
        "webhook_attempts",
        sa.Column(
            "delivery_id", sa.String(64), sa.ForeignKey("webhook_deliveries.id"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("duration_seconds", sa.Float, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("response_body", sa.Text, nullable=False),
    )


def _create_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "endpoint_id", sa.String(64), sa.ForeignKey("webhook_endpoints.id"), nullable=False
        ),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("fact_id", sa.String(64), nullable=False),
        sa.Column("fact_time", UtcDateTime, nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("attempt_count", sa.Integer, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("round_time", UtcDateTime, nullable=False),
        sa.Column("next_attempt_time", UtcDateTime),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.UniqueConstraint("endpoint_id", "fact_id"),
    )
    table = "webhook_deliveries"
    op.create_index("webhook_deliveries_due", table, ["status", "next_attempt_time"])
    op.create_index("webhook_deliveries_endpoint_id", table, ["endpoint_id", "id"])
    op.create_index("webhook_deliveries_fact_time", table, ["fact_time"])
