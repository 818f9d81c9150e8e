"""How Triton runs a model, as its deployment says."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("serving", sa.JSON(none_as_null=True)))
