"""Checkpoints that are kept, and neither compressed nor served."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "checkpoints",
        sa.Column("served", sa.Boolean, nullable=False, server_default=sa.true()),
    )
