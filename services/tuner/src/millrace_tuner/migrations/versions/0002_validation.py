"""When a job's files were validated, and all that was measured at a checkpoint."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("validate_time", UtcDateTime))
    # Jobs of before were made from files that had been checked when they were uploaded.
    op.execute("UPDATE jobs SET validate_time = create_time")
    op.add_column("checkpoints", sa.Column("metrics", sa.JSON, nullable=False, server_default="{}"))
