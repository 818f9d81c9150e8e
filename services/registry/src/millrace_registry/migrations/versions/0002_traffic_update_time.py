"""When a gateway's counters were last reported, so that those of ended lives can go."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("traffic", sa.Column("update_time", UtcDateTime))
