"""How a checkpoint is compressed, where its target leaves a choice."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("compressions", sa.Column("recipe", sa.JSON))
