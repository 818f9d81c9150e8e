"""By which task an artifact is measured beside its original."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("compressions", sa.Column("task", sa.JSON))
