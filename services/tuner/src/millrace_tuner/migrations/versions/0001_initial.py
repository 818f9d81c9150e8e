"""Jobs, their checkpoints and events, and the outbox."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    numbered = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "outbox",
        sa.Column("sequence", numbered, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("published_in", sa.String(128)),
    )
    op.create_index("outbox_published_in", "outbox", ["published_in", "sequence"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("tuned_model", sa.String(300), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("failure_reason", sa.String(128)),
        sa.Column("failure_message", sa.Text),
        sa.Column("outcome_reason", sa.String(128)),
        sa.Column("outcome_message", sa.Text),
        sa.Column("trained_tokens", sa.BigInteger, nullable=False),
        sa.Column("result_file", sa.String(255), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
        sa.Column("start_time", UtcDateTime),
        sa.Column("trained_time", UtcDateTime),
        sa.Column("finish_time", UtcDateTime),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("jobs_tenant_id", "jobs", ["tenant", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("model", sa.String(300), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("train_loss", sa.Float, nullable=False),
        sa.Column("valid_loss", sa.Float),
        sa.Column("trained_tokens", sa.BigInteger, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("base_checkpoint_digest", sa.String(80), nullable=False),
        sa.Column("training_file_digest", sa.String(80), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.UniqueConstraint("job", "digest"),
    )
    op.create_index("checkpoints_tenant_job_id", "checkpoints", ["tenant", "job", "id"])
    op.create_table(
        "job_events",
        sa.Column("sequence", numbered, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(80), nullable=False, unique=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.UniqueConstraint("job", "key"),
    )
    op.create_index("job_events_tenant_job_sequence", "job_events", ["tenant", "job", "sequence"])
