"""Batches and their lines."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(80), nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
        sa.Column("start_time", UtcDateTime),
        sa.Column("finalize_time", UtcDateTime),
        sa.Column("cancel_time", UtcDateTime),
        sa.Column("finish_time", UtcDateTime),
        sa.Column("model", sa.String(300)),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_file_id", sa.String(80)),
        sa.Column("error_file_id", sa.String(80)),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_expires", UtcDateTime),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("ix_batches_status", "batches", ["status"])
    op.create_index("batches_tenant_id", "batches", ["tenant", "id"])
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.String(512), nullable=False),
        sa.Column("is_success", sa.Boolean),
        sa.Column("answer", sa.Text),
        sa.UniqueConstraint("batch_id", "custom_id"),
    )
