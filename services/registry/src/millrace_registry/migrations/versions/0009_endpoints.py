"""What each endpoint says of itself: which versions answer there, what its memory is for."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("answering", sa.JSON),
        sa.Column("memory", sa.JSON),
        sa.Column("update_time", UtcDateTime, nullable=False),
    )
