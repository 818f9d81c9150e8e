"""The service's tables. ``migrations/`` makes them; a test holds the two together."""

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, MetaData, String, Table, Text

from millrace_runtime.database import UtcDateTime
from millrace_runtime.idempotency import request_columns
from millrace_runtime.leases import lease_columns
from millrace_runtime.outbox import outbox_table

METADATA = MetaData()

OUTBOX = outbox_table(METADATA)

FILES = Table(
    "files",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    # PENDING: announced, its bytes not yet in place; AVAILABLE; DELETED.
    Column("state", String(16), nullable=False),
    Column("uri", Text, nullable=False),
    Column("digest", String(80), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("example_count", BigInteger, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("expire_time", UtcDateTime, index=True),
    # What the check of a file for fine-tuning found.
    Column("report", JSON(none_as_null=True)),
    *request_columns(),
    Index("files_tenant_id", "tenant", "id"),
)

# One row for each digest that may have bytes in the store. Whoever brings bytes in or takes
# them out locks the row first, so that an upload and a removal of equal bytes cannot overlap.
STORED_BYTES = Table("stored_bytes", METADATA, Column("digest", String(80), primary_key=True))

# Which rows content holds that models learn from (``row_index``); it stays when the content goes.
ROW_INDEXES = Table(
    "row_indexes",
    METADATA,
    Column("digest", String(80), primary_key=True),
    Column("uri", Text, nullable=False),
    Column("index_digest", String(80), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)

UPLOADS = Table(
    "uploads",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("mime_type", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("file_expire_seconds", BigInteger),
    Column("state", String(16), nullable=False, index=True),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    Column("expire_time", UtcDateTime, nullable=False),
    # Set once COMPLETED.
    Column("part_ids", JSON),
    Column("md5", String(32)),
    Column("file_id", String(80), index=True),
    *request_columns(),
)

# Rows of parts go when their upload has ended, after their bytes.
UPLOAD_PARTS = Table(
    "upload_parts",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("upload_id", String(80), nullable=False),
    # PENDING: announced, its bytes not yet in place; AVAILABLE.
    Column("state", String(16), nullable=False),
    Column("uri", Text, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    *request_columns(),
    Index("upload_parts_upload_id", "upload_id", "id"),
)

PROMPTS = Table(
    "prompts",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("display_name", String(128), nullable=False),
    Column("latest_version", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    *request_columns(),
    Index("prompts_tenant_id", "tenant", "id"),
)

# Rows are added and never changed; they go with their prompt.
PROMPT_VERSIONS = Table(
    "prompt_versions",
    METADATA,
    Column("id", String(96), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("prompt_id", String(80), nullable=False),
    Column("number", Integer, nullable=False),
    # JSON as text: its digest is that of these characters.
    Column("template", Text, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    *request_columns(),
    Index("prompt_versions_prompt_id", "prompt_id", "number"),
)

DATASETS = Table(
    "datasets",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("display_name", String(128), nullable=False),
    Column("source", JSON, nullable=False),
    Column("recipe", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("progress", JSON, nullable=False),
    Column("failure_reason", String(128)),
    Column("failure_message", Text),
    Column("uri", Text),
    Column("digest", String(80)),
    Column("size_bytes", BigInteger),
    Column("tokenizer_digest", String(80)),
    Column("train_tokens", BigInteger),
    Column("heldout_tokens", BigInteger),
    Column("documents", JSON),
    Column("attempts", Integer, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    *lease_columns(),
    *request_columns(),
    Index("datasets_tenant_id", "tenant", "id"),
)
