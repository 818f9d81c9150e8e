"""When a batch was last given a place, so that tenants take turns.

Null in batches of before: they count as never claimed.
"""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("batches", sa.Column("claim_time", UtcDateTime))
    op.create_index("batches_tenant_claim_time", "batches", ["tenant", "claim_time"])
