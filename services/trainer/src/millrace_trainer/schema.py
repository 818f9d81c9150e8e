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
)

from millrace_runtime.database import UtcDateTime
from millrace_runtime.idempotency import request_columns
from millrace_runtime.leases import lease_columns
from millrace_runtime.outbox import outbox_table

METADATA = MetaData()

OUTBOX = outbox_table(METADATA)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("model", String(63), nullable=False),
    Column("dataset_name", String(200), nullable=False, index=True),
    # Null until the dataset is ready.
    Column("dataset", JSON(none_as_null=True)),
    Column("initial_checkpoint", String(300), nullable=False),
    Column("architecture", JSON, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("has_started", Boolean, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("failure_reason", String(128)),
    Column("failure_message", Text),
    Column("parameter_count", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    *lease_columns(),
    *request_columns(),
    Index("runs_tenant_id", "tenant", "id"),
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("run_id", String(80), nullable=False),
    Column("model", String(63), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("tokens_seen", BigInteger, nullable=False),
    Column("train_loss", Float, nullable=False),
    Column("heldout_loss", Float),
    Column("final", Boolean, nullable=False),
    Column("content", JSON, nullable=False),
    Column("dataset_name", String(200), nullable=False),
    Column("dataset", JSON, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # The natural key: a job that resumes reports its checkpoints again.
    UniqueConstraint("run_id", "step"),
    Index("checkpoints_tenant_id", "tenant", "id"),
)

METRICS = Table(
    "run_metrics",
    METADATA,
    Column("run_id", String(80), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("metrics", JSON, nullable=False),
)
