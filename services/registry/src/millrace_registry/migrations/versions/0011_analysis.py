"""How a deployment's new versions are compared with those before them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("analysis", sa.JSON(none_as_null=True)))
