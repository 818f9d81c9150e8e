"""Runs, checkpoints, metrics and the outbox."""

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
        "runs",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("dataset_name", sa.String(200), nullable=False),
        sa.Column("dataset", sa.JSON(none_as_null=True)),
        sa.Column("initial_checkpoint", sa.String(300), nullable=False),
        sa.Column("architecture", sa.JSON, nullable=False),
        sa.Column("hyperparameters", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("has_started", sa.Boolean, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("failure_reason", sa.String(128)),
        sa.Column("failure_message", sa.Text),
        sa.Column("parameter_count", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_index("ix_runs_dataset_name", "runs", ["dataset_name"])
    op.create_index("runs_tenant_id", "runs", ["tenant", "id"])
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("run_id", sa.String(80), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("tokens_seen", sa.BigInteger, nullable=False),
        sa.Column("train_loss", sa.Float, nullable=False),
        sa.Column("heldout_loss", sa.Float),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("dataset_name", sa.String(200), nullable=False),
        sa.Column("dataset", sa.JSON, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.UniqueConstraint("run_id", "step"),
    )
    op.create_index("checkpoints_tenant_id", "checkpoints", ["tenant", "id"])
    op.create_table(
        "run_metrics",
        sa.Column("run_id", sa.String(80), primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
