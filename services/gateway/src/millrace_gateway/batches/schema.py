"""The tables of batches: one row a batch, and one a line until the batch has ended."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from millrace_runtime.database import UtcDateTime
from millrace_runtime.idempotency import request_columns
from millrace_runtime.leases import lease_columns

LONGEST_CUSTOM_ID = 512


def batches_table(metadata: MetaData) -> Table:
    """``claim_time``: when the batch was last given a place (``turns.py``)."""
    return Table(
        "batches",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("tenant", String(64), nullable=False),
        Column("key_id", String(64), nullable=False),
        Column("endpoint", String(64), nullable=False),
        Column("input_file_id", String(80), nullable=False),
        Column("metadata", JSON(none_as_null=True)),
        Column("status", String(16), nullable=False, index=True),
        Column("traceparent", String(64), nullable=False),
        Column("create_time", UtcDateTime, nullable=False),
        Column("expire_time", UtcDateTime, nullable=False),
        Column("start_time", UtcDateTime),
        Column("finalize_time", UtcDateTime),
        Column("cancel_time", UtcDateTime),
        Column("finish_time", UtcDateTime),
        Column("claim_time", UtcDateTime),
        Column("model", String(300)),
        Column("total", Integer, nullable=False),
        Column("completed", Integer, nullable=False),
        Column("failed", Integer, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("reasoning_tokens", BigInteger, nullable=False),
        Column("output_file_id", String(80)),
        Column("error_file_id", String(80)),
        Column("errors", JSON, nullable=False),
        *lease_columns(),
        *request_columns(),
        Index("batches_tenant_id", "tenant", "id"),
        Index("batches_tenant_claim_time", "tenant", "claim_time"),
    )


def lines_table(metadata: MetaData) -> Table:
    """A line's answer is written once: ``answer`` is null before."""
    return Table(
        "batch_lines",
        metadata,
        Column("batch_id", String(64), ForeignKey("batches.id"), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("custom_id", String(LONGEST_CUSTOM_ID), nullable=False),
        Column("is_success", Boolean),
        Column("answer", Text),
        UniqueConstraint("batch_id", "custom_id"),
    )
