"""Recalls: what is recalled, and the versions that learnt from it."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table("recall_locks", sa.Column("tenant", sa.String(63), primary_key=True))
    op.create_table(
        "recalls",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("unindexed", sa.JSON, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("recalls_tenant_id", "recalls", ["tenant", "id"])
    op.create_table(
        "recall_causes",
        sa.Column("recall", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(400), primary_key=True),
        sa.Column("is_heldout", sa.Boolean, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("row_count", sa.BigInteger, nullable=False),
        sa.Column("hashes", sa.JSON, nullable=False),
    )
    op.create_table(
        "recall_versions",
        sa.Column("recall", sa.String(80), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state_before", sa.String(16), nullable=False),
        sa.Column("was_live", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("successor", sa.BigInteger, nullable=False),
    )
