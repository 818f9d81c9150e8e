"""Rollouts that a person asks for: a version may be rolled out more than once. Tags."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# What PostgreSQL called them when ``0001`` did not; SQLite keeps no name, so one is given to find
# them by.
_UNIQUE = "rollouts_tenant_model_to_version_key"
_NAMES = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}


def upgrade() -> None:
    with op.batch_alter_table("rollouts", naming_convention=_NAMES) as rollouts:
        rollouts.drop_constraint(_UNIQUE, type_="unique")
        rollouts.add_column(sa.Column("request_id", sa.String(128)))
        rollouts.add_column(sa.Column("request_digest", sa.String(80)))
        rollouts.create_unique_constraint(
            "rollouts_tenant_request_id_key", ["tenant", "request_id"]
        )
    op.add_column("models", sa.Column("tags", sa.JSON(none_as_null=True)))
    op.add_column("versions", sa.Column("tags", sa.JSON(none_as_null=True)))
