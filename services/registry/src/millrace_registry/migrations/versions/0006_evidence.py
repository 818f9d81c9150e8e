"""What rollouts are judged by: how answers were, golden prompts' scores, and how long it took."""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("evidence", sa.JSON(none_as_null=True)))
    op.add_column("rollouts", sa.Column("answers_before", sa.JSON(none_as_null=True)))
    op.add_column("rollouts", sa.Column("load_time", UtcDateTime))
    op.add_column("rollouts", sa.Column("ready_time", UtcDateTime))
    op.add_column("versions", sa.Column("compress_start_time", UtcDateTime))
    op.add_column("versions", sa.Column("compress_finish_time", UtcDateTime))
    op.create_table(
        "answer_counts",
        sa.Column("gateway", sa.String(128), primary_key=True),
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "golden_scores",
        sa.Column("rollout", sa.String(80), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("prompt", sa.String(128), primary_key=True),
        sa.Column("score", sa.Float),
        sa.Column("answer_tokens", sa.Integer),
    )
