"""Uploads in parts, and files that go by themselves.

Files of before have no time of their own: they stay until they are deleted.
"""

import sqlalchemy as sa
from alembic import op

from millrace_runtime.database import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("files", sa.Column("expire_time", UtcDateTime))
    op.create_index("ix_files_expire_time", "files", ["expire_time"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("mime_type", sa.String(255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("file_expire_seconds", sa.BigInteger),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
        sa.Column("part_ids", sa.JSON),
        sa.Column("md5", sa.String(32)),
        sa.Column("file_id", sa.String(80)),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("ix_uploads_state", "uploads", ["state"])
    op.create_index("ix_uploads_file_id", "uploads", ["file_id"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("upload_id", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("request_digest", sa.String(80)),
        sa.UniqueConstraint("tenant", "request_id"),
    )
    op.create_index("upload_parts_upload_id", "upload_parts", ["upload_id", "id"])
