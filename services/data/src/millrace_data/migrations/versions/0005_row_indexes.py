"""Which rows files hold, for recalls."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "row_indexes",
        sa.Column("digest", sa.String(80), primary_key=True),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("index_digest", sa.String(80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
