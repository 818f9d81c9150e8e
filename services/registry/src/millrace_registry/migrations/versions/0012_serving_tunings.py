"""Searches for settings, and what was measured in each."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "serving_tunings",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("deployment", sa.String(80), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("active_deployment", sa.String(80), unique=True),
        sa.Column("endpoint", sa.String(200)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wish", sa.JSON, nullable=False),
        sa.Column("plan", sa.JSON(none_as_null=True)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True)),
        sa.Column("failure_reason", sa.String(128)),
        sa.Column("failure_message", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("start_time", UtcDateTime),
        sa.Column("finish_time", UtcDateTime),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("ix_serving_tunings_state", "serving_tunings", ["state"])
    op.create_index("serving_tunings_tenant_id", "serving_tunings", ["tenant", "id"])
    op.create_table(
        "serving_trials",
        sa.Column("tuning", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
