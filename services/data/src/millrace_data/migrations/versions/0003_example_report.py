"""What the check of a file for fine-tuning found. Files of before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("files", sa.Column("report", sa.JSON))
