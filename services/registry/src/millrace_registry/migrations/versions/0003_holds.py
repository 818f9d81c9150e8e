"""Versions that are kept loaded because somebody asks for them by their checkpoint's step."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
    )
