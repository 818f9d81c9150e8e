"""Compressions, considered checkpoints and the outbox."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("published_in", sa.String(128)),
    )
    op.create_index("outbox_published_in", "outbox", ["published_in", "sequence"])
    op.create_table(
        "considered_checkpoints",
        sa.Column("name", sa.String(400), primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "compressions",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("checkpoint_step", sa.Integer, nullable=False),
        sa.Column("checkpoint_final", sa.Boolean, nullable=False),
        sa.Column("checkpoint_name", sa.String(400), nullable=False),
        sa.Column("checkpoint_digest", sa.String(80), nullable=False),
        sa.Column("checkpoint", sa.JSON, nullable=False),
        sa.Column("target", sa.String(32), nullable=False),
        sa.Column("recipe_digest", sa.String(80), nullable=False),
        sa.Column("gate", sa.JSON, nullable=False),
        sa.Column("deployment", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("failure_reason", sa.String(128)),
        sa.Column("failure_message", sa.Text),
        sa.Column("verdict", sa.JSON),
        sa.Column("measurements", sa.JSON),
        sa.Column("artifact", sa.JSON),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("requested_time", UtcDateTime),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("start_time", UtcDateTime),
        sa.Column("finish_time", UtcDateTime),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
        sa.UniqueConstraint("tenant", "checkpoint_digest", "target", "recipe_digest"),
    )
    op.create_index("ix_compressions_state", "compressions", ["state"])
    op.create_index("compressions_tenant_id", "compressions", ["tenant", "id"])
