"""The service's tables. ``migrations/`` makes them; a test holds the two together."""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
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

COMPRESSIONS = Table(
    "compressions",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("model", String(256), nullable=False),
    Column("checkpoint_step", Integer, nullable=False),
    Column("checkpoint_final", Boolean, nullable=False),
    Column("checkpoint_name", String(400), nullable=False),
    Column("checkpoint_digest", String(80), nullable=False),
    Column("checkpoint", JSON, nullable=False),
    Column("target", String(32), nullable=False),
    # Of what is done to the checkpoint and how it is judged.
    Column("recipe_digest", String(80), nullable=False),
    Column("gate", JSON, nullable=False),
    # null: of before there were recipes; the target's defaults.
    Column("recipe", JSON(none_as_null=True)),
    # null: none is named.
    Column("task", JSON(none_as_null=True)),
    Column("deployment", String(200), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("progress", JSON, nullable=False),
    Column("failure_reason", String(128)),
    Column("failure_message", Text),
    Column("verdict", JSON),
    Column("measurements", JSON),
    Column("artifact", JSON),
    Column("attempts", Integer, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("requested_time", UtcDateTime),
    Column("create_time", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("finish_time", UtcDateTime),
    *lease_columns(),
    *request_columns(),
    # The natural key: however often its fact is delivered, a checkpoint is compressed once.
    UniqueConstraint("tenant", "checkpoint_digest", "target", "recipe_digest"),
    Index("compressions_tenant_id", "tenant", "id"),
)

# Checkpoints whose deployments have been asked for, also those that no deployment wanted.
CONSIDERED = Table(
    "considered_checkpoints",
    METADATA,
    Column("name", String(400), primary_key=True),
    Column("time", UtcDateTime, nullable=False),
)
