"""The file that holds the trials of a sweep."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    column = sa.Column("trials_file", sa.String(255), nullable=False, server_default="")
    op.add_column("jobs", column)
