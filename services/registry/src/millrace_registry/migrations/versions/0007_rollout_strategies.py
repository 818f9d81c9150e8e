"""Shadow, blue-green and A/B rollouts; rollouts that pause; what is seen of both versions."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # With defaults: a registry that is older than this still adds rollouts while it is replaced.
    for column in (
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("mirror_share", sa.Float, nullable=False, server_default="0"),
        sa.Column("stage", sa.JSON(none_as_null=True)),
        sa.Column("seen", sa.JSON(none_as_null=True)),
    ):
        op.add_column("rollouts", column)
    op.add_column("traffic", sa.Column("tokens", sa.BigInteger))
    op.add_column("traffic", sa.Column("timed", sa.BigInteger))
    op.add_column("traffic", sa.Column("first_token_seconds", sa.Float))
    counts = ("compared", "truncated", "failed", "old_tokens", "new_tokens")
    op.create_table(
        "comparisons",
        sa.Column("gateway", sa.String(128), primary_key=True),
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("old_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("new_version", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("agreement", sa.Float, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
    )
