"""Files, datasets and the outbox."""

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
        "files",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("example_count", sa.BigInteger, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("files_tenant_id", "files", ["tenant", "id"])
    op.create_index("ix_files_digest", "files", ["digest"])
    op.create_table("stored_bytes", sa.Column("digest", sa.String(80), primary_key=True))
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("display_name", sa.String(128), nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("failure_reason", sa.String(128)),
        sa.Column("failure_message", sa.Text),
        sa.Column("uri", sa.Text),
        sa.Column("digest", sa.String(80)),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("tokenizer_digest", sa.String(80)),
        sa.Column("train_tokens", sa.BigInteger),
        sa.Column("heldout_tokens", sa.BigInteger),
        sa.Column("documents", sa.JSON),
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
    op.create_index("datasets_tenant_id", "datasets", ["tenant", "id"])
    op.create_index("ix_datasets_state", "datasets", ["state"])
