"""What a key may use: its limits and its priority.

``priority`` has a default in the database: while a gateway is restarted, the process that goes
still makes keys and knows nothing of the column.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("keys", sa.Column("requests_per_minute", sa.Integer))
    op.add_column("keys", sa.Column("tokens_per_minute", sa.Integer))
    op.add_column("keys", sa.Column("concurrent_generations", sa.Integer))
    op.add_column(
        "keys", sa.Column("priority", sa.String(16), nullable=False, server_default="default")
    )
