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

MODELS = Table(
    "models",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("id", String(256), primary_key=True),
    Column("base_model", String(256), nullable=False),
    Column("serving_version", BigInteger, nullable=False),
    Column("is_deleted", Boolean, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # null: none.
    Column("tags", JSON(none_as_null=True)),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("version", BigInteger, nullable=False),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("target", String(64), nullable=False),
    Column("artifact", JSON, nullable=False),
    Column("checkpoint", JSON, nullable=False),
    Column("measurements", JSON, nullable=False),
    Column("interface", JSON(none_as_null=True)),
    Column("compression", String(200), nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("retire_time", UtcDateTime),
    Column("compress_start_time", UtcDateTime),
    Column("compress_finish_time", UtcDateTime),
    # null: none.
    Column("tags", JSON(none_as_null=True)),
    # The natural key: however often its fact is delivered, an artifact becomes one version.
    UniqueConstraint("tenant", "compression"),
)

DEPLOYMENTS = Table(
    "deployments",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("model", String(256), nullable=False),
    Column("tracking", String(16), nullable=False),
    Column("targets", JSON, nullable=False),
    Column("gate", JSON, nullable=False),
    # A strategy's settings; null: immediate. Those of a canary have no "kind".
    Column("canary", JSON(none_as_null=True)),
    # null: the default.
    Column("serving", JSON(none_as_null=True)),
    # null: the targets' defaults.
    Column("recipe", JSON(none_as_null=True)),
    # null: none is named.
    Column("task", JSON(none_as_null=True)),
    # null: the defaults.
    Column("analysis", JSON(none_as_null=True)),
    Column("revision", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    *request_columns(),
    # One model is served in one way.
    UniqueConstraint("tenant", "model"),
)

ROLLOUTS = Table(
    "rollouts",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("deployment", String(80), nullable=False),
    Column("model", String(256), nullable=False),
    Column("from_version", BigInteger, nullable=False),
    Column("to_version", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("traffic_share", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("counters", JSON, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("mirror_share", Float, nullable=False),
    # What the present step asks for, and what has been seen in it; null: nothing.
    Column("stage", JSON(none_as_null=True)),
    Column("seen", JSON(none_as_null=True)),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    Column("step_time", UtcDateTime),
    Column("finish_time", UtcDateTime),
    Column("evidence", JSON(none_as_null=True)),
    Column("answers_before", JSON(none_as_null=True)),
    Column("load_time", UtcDateTime),
    Column("ready_time", UtcDateTime),
    # Of those that a person asked for.
    *request_columns(),
    Index("rollouts_tenant_id", "tenant", "id"),
)

TRAFFIC = Table(
    "traffic",
    METADATA,
    Column("gateway", String(128), primary_key=True),
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    # Whole answers to clients; null: nobody has counted.
    Column("tokens", BigInteger),
    Column("timed", BigInteger),
    Column("first_token_seconds", Float),
    # Of the last report; a life that has ended reports no more.
    Column("update_time", UtcDateTime),
)

# Answers to mirrored requests beside those that clients got.
COMPARISONS = Table(
    "comparisons",
    METADATA,
    Column("gateway", String(128), primary_key=True),
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("old_version", BigInteger, primary_key=True, autoincrement=False),
    Column("new_version", BigInteger, primary_key=True, autoincrement=False),
    Column("compared", BigInteger, nullable=False),
    Column("agreement", Float, nullable=False),
    Column("truncated", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("old_tokens", BigInteger, nullable=False),
    Column("new_tokens", BigInteger, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
)

# How quick and how long one gateway's answers of a version were (``evidence_store``).
ANSWER_COUNTS = Table(
    "answer_counts",
    METADATA,
    Column("gateway", String(128), primary_key=True),
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("document", JSON, nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
)

# How the two versions of a rollout score its golden prompts; null: not to a finite number.
GOLDEN_SCORES = Table(
    "golden_scores",
    METADATA,
    Column("rollout", String(80), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("prompt", String(128), primary_key=True),
    Column("score", Float),
    # Of its own greedy answer to the prompt; null: it was not asked for one.
    Column("answer_tokens", Integer),
)

# Versions that are kept loaded though they do not serve, and until when.
HOLDS = Table(
    "holds",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("expire_time", UtcDateTime, nullable=False),
)

# The right to control one Triton endpoint: of several registries, one at a time.
CONTROLLERS = Table(
    "controllers",
    METADATA,
    Column("id", String(200), primary_key=True),
    *lease_columns(),
)

# What each endpoint said of itself last, by its controller; null: nothing yet.
ENDPOINTS = Table(
    "endpoints",
    METADATA,
    Column("id", String(200), primary_key=True),
    # [[model on Triton, version], …] that answer there.
    Column("answering", JSON(none_as_null=True)),
    # Its budget, and what versions claim of it (``endpoint_store``).
    Column("memory", JSON(none_as_null=True)),
    Column("update_time", UtcDateTime, nullable=False),
)

# What gateways are told; one row, written by the controller when it changes.
ROUTES = Table(
    "routes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
)

NODES = Table(
    "lineage_nodes",
    METADATA,
    Column("name", String(400), primary_key=True),
    Column("kind", String(32), nullable=False, index=True),
    Column("digest", String(80), nullable=False, index=True),
    # When it came to be, where a fact said so.
    Column("time", UtcDateTime),
)

# Whoever registers versions, learns lineage or recalls, of a tenant: one at a time.
RECALL_LOCKS = Table("recall_locks", METADATA, Column("tenant", String(63), primary_key=True))

RECALLS = Table(
    "recalls",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("unindexed", JSON, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # null: it was not lifted.
    Column("lift_time", UtcDateTime),
    Column("lift_reason", Text),
    *request_columns(),
    Index("recalls_tenant_id", "tenant", "id"),
)

# What is recalled: by name, and by content.
RECALL_CAUSES = Table(
    "recall_causes",
    METADATA,
    Column("recall", String(80), primary_key=True),
    Column("name", String(400), primary_key=True),
    Column("is_heldout", Boolean, primary_key=True),
    Column("digest", String(80), nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("hashes", JSON, nullable=False),
    # When the standing recall found its rows there; null: it was made with it.
    Column("join_time", UtcDateTime),
)

# The rows that a recall is about, which it looks for while it stands: hashes, and a file's name
# (empty: none). Of recalls that were made before rows were kept there is none.
RECALL_ROWS = Table(
    "recall_rows",
    METADATA,
    Column("recall", String(80), primary_key=True),
    Column("hashes", JSON, nullable=False),
    Column("file", String(400), nullable=False),
)

# The files and datasets in which a standing recall has looked for its rows.
RECALL_LOOKS = Table(
    "recall_looks",
    METADATA,
    Column("recall", String(80), primary_key=True),
    Column("name", String(400), primary_key=True),
)

# The versions that a recall has met, and what it did about each.
RECALL_VERSIONS = Table(
    "recall_versions",
    METADATA,
    Column("recall", String(80), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("state_before", String(16), nullable=False),
    Column("was_live", Boolean, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("successor", BigInteger, nullable=False),
    # What was the matter with it already; null: unknown.
    Column("reason_before", Text),
)

EDGES = Table(
    "lineage_edges",
    METADATA,
    Column("cause", String(400), primary_key=True),
    Column("effect", String(400), primary_key=True),
    Index("lineage_edges_effect", "effect"),
)

# Searches for the settings that a deployment's model is served with best.
SERVING_TUNINGS = Table(
    "serving_tunings",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("deployment", String(80), nullable=False),
    Column("model", String(256), nullable=False),
    # The deployment until it has ended, then null: one at a time.
    Column("active_deployment", String(80), unique=True),
    # Where it was begun: what is measured on another machine says nothing here; null: not begun.
    Column("endpoint", String(200)),
    Column("state", String(16), nullable=False, index=True),
    Column("wish", JSON, nullable=False),
    # What all its looks stand on; null: not begun.
    Column("plan", JSON(none_as_null=True)),
    Column("progress", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("failure_reason", String(128)),
    Column("failure_message", Text),
    # In a row that brought no look further.
    Column("attempts", Integer, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("finish_time", UtcDateTime),
    *lease_columns(),
    *request_columns(),
    Index("serving_tunings_tenant_id", "tenant", "id"),
)

SERVING_TRIALS = Table(
    "serving_trials",
    METADATA,
    Column("tuning", String(80), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("document", JSON, nullable=False),
)
