"""By which task a deployment's artifacts are measured."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("task", sa.JSON(none_as_null=True)))
