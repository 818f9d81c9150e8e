"""The service's tables. ``migrations/`` makes them; a test holds the two together."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    true,
)

from millrace_runtime.database import UtcDateTime
from millrace_runtime.idempotency import request_columns
from millrace_runtime.leases import lease_columns
from millrace_runtime.outbox import outbox_table

METADATA = MetaData()

OUTBOX = outbox_table(METADATA)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("plan", JSON, nullable=False),
    Column("tuned_model", String(300), nullable=False, unique=True),
    Column("state", String(16), nullable=False, index=True),
    Column("progress", JSON, nullable=False),
    Column("failure_reason", String(128)),
    Column("failure_message", Text),
    # SERVING, or the reason why the final checkpoint cannot serve.
    Column("outcome_reason", String(128)),
    Column("outcome_message", Text),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("result_file", String(255), nullable=False),
    Column("trials_file", String(255), nullable=False, server_default=""),
    Column("attempts", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("validate_time", UtcDateTime),
    Column("trained_time", UtcDateTime),
    Column("finish_time", UtcDateTime),
    *lease_columns(),
    *request_columns(),
    Index("jobs_tenant_id", "tenant", "id"),
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("job", String(80), nullable=False),
    Column("model", String(300), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("train_loss", Float, nullable=False),
    Column("valid_loss", Float),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("uri", Text, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("base_checkpoint_digest", String(80), nullable=False),
    Column("training_file_digest", String(80), nullable=False),
    Column("metrics", JSON, nullable=False, server_default="{}"),
    Column("served", Boolean, nullable=False, server_default=true()),
    Column("create_time", UtcDateTime, nullable=False),
    # A job reports a checkpoint again after a restart: it is the same one.
    UniqueConstraint("job", "digest"),
    Index("checkpoints_tenant_job_id", "tenant", "job", "id"),
)

JOB_EVENTS = Table(
    "job_events",
    METADATA,
    # SQLite numbers rows by itself only in a column declared INTEGER.
    Column(
        "sequence",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("id", String(80), nullable=False, unique=True),
    Column("tenant", String(63), nullable=False),
    Column("job", String(80), nullable=False),
    Column("key", String(80), nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # What is told once is not told again when a job repeats itself after a restart.
    UniqueConstraint("job", "key"),
    Index("job_events_tenant_job_sequence", "tenant", "job", "sequence"),
)
