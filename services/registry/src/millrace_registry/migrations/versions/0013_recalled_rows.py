"""Recalls look for their rows in what is learnt from later, and can be lifted."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("recalls", sa.Column("lift_time", UtcDateTime))
    op.add_column("recalls", sa.Column("lift_reason", sa.Text))
    op.add_column("recall_causes", sa.Column("join_time", UtcDateTime))
    op.add_column("recall_versions", sa.Column("reason_before", sa.Text))
    op.create_table(
        "recall_rows",
        sa.Column("recall", sa.String(80), primary_key=True),
        sa.Column("hashes", sa.JSON, nullable=False),
        sa.Column("file", sa.String(400), nullable=False),
    )
    op.create_table(
        "recall_looks",
        sa.Column("recall", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(400), primary_key=True),
    )
    op.create_index("ix_lineage_nodes_kind", "lineage_nodes", ["kind"])
