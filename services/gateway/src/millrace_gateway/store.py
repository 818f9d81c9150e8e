"""The gateway's tables: keys, permissions, batches, webhooks, gateways, the outbox."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import (
    Column,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    func,
    select,
    update,
)
from sqlalchemy.exc import OperationalError

from millrace_gateway import convert
from millrace_gateway.batches.schema import batches_table, lines_table
from millrace_gateway.domain import Key, KeyLimits, Priority, Role
from millrace_gateway.webhooks.schema import attempts_table, deliveries_table, endpoints_table
from millrace_runtime.database import Database, UtcDateTime
from millrace_runtime.errors import Unavailable
from millrace_runtime.outbox import Outbox, outbox_table

METADATA = MetaData()
KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("display_name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_digest", String(80), nullable=False, unique=True),
    Column("create_time", UtcDateTime, nullable=False),
    Column("revoke_time", UtcDateTime),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrent_generations", Integer),
    Column("priority", String(16), nullable=False, server_default=Priority.DEFAULT.value),
    Index("keys_tenant", "tenant", "id"),
)
OUTBOX = outbox_table(METADATA)
BATCHES = batches_table(METADATA)
BATCH_LINES = lines_table(METADATA)
WEBHOOK_ENDPOINTS = endpoints_table(METADATA)
WEBHOOK_DELIVERIES = deliveries_table(METADATA)
WEBHOOK_ATTEMPTS = attempts_table(METADATA)
CHECKPOINT_PERMISSIONS = Table(
    "checkpoint_permissions",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("reference", String(288), nullable=False),
    Column("project", String(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "reference", "project"),
)
GATEWAYS = Table(
    "gateways",
    METADATA,
    Column("id", String(128), primary_key=True),
    Column("beats", Integer, nullable=False),
)


class KeyTable:
    """Keys in the database; each change and its fact are one transaction."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def add(self, key: Key, secret_digest: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                KEYS.insert().values(
                    id=key.id,
                    tenant=key.tenant,
                    display_name=key.display_name,
                    role=key.role.value,
                    secret_digest=secret_digest,
                    create_time=key.create_time,
                    **_columns(asdict(key.limits)),
                )
            )
            self._outbox.record(connection, key.tenant, convert.key_created(key))

    def revoke(self, tenant: str, key_id: str, now: datetime) -> Key | None:
        """Revoke a key, if it is not revoked already; None when there is no such key."""
        ours = (KEYS.c.tenant == tenant, KEYS.c.id == key_id)
        with self._database.transaction() as connection:
            changed = connection.execute(
                update(KEYS).where(*ours, KEYS.c.revoke_time.is_(None)).values(revoke_time=now)
            )
            row = connection.execute(select(KEYS).where(*ours)).first()
            if row is None:
                return None
            key = _key(row)
            if changed.rowcount:
                self._outbox.record(connection, tenant, convert.key_revoked(key))
            return key

    def change_limits(
        self, tenant: str, key_id: str, changes: Mapping[str, int | Priority | None]
    ) -> Key | None:
        """Change some of a key's limits, by their names; None when there is no such key.

        A revoked key stays as it is: its limits are of no effect.
        """
        ours = (KEYS.c.tenant == tenant, KEYS.c.id == key_id)
        with self._database.transaction() as connection:
            changed = connection.execute(
                update(KEYS).where(*ours, KEYS.c.revoke_time.is_(None)).values(_columns(changes))
            )
            row = connection.execute(select(KEYS).where(*ours)).first()
            if row is None:
                return None
            key = _key(row)
            if changed.rowcount:
                self._outbox.record(connection, tenant, convert.key_updated(key))
            return key

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Key]:
        """At most ``size`` keys of a tenant, newest first, older than ``before_id`` if given."""
        query = select(KEYS).where(KEYS.c.tenant == tenant).order_by(KEYS.c.id.desc()).limit(size)
        if before_id:
            query = query.where(KEYS.c.id < before_id)
        with self._database.transaction() as connection:
            return [_key(row) for row in connection.execute(query)]

    def get(self, tenant: str, key_id: str) -> Key | None:
        """A tenant's key, revoked or not; None when there is no such key."""
        query = select(KEYS).where(KEYS.c.tenant == tenant, KEYS.c.id == key_id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else _key(row)

    def find_live(self, secret_digest: str) -> Key | None:
        """The key with this secret, unless it is revoked.

        Raises:
            Unavailable: the database does not answer.
        """
        query = select(KEYS).where(
            KEYS.c.secret_digest == secret_digest, KEYS.c.revoke_time.is_(None)
        )
        try:
            with self._database.transaction() as connection:
                row = connection.execute(query).first()
        except OperationalError as error:
            raise Unavailable(
                "keys cannot be looked up now; try again", reason="DATABASE_UNAVAILABLE"
            ) from error
        return None if row is None else _key(row)

    def knows(self, secret_digest: str) -> bool:
        """Whether there is, or was, a key with this secret."""
        query = select(KEYS.c.id).where(KEYS.c.secret_digest == secret_digest)
        with self._database.transaction() as connection:
            return connection.execute(query).first() is not None

    def has_live_operator(self) -> bool:
        query = (
            select(func.count())
            .select_from(KEYS)
            .where(KEYS.c.role == Role.OPERATOR.value, KEYS.c.revoke_time.is_(None))
        )
        with self._database.transaction() as connection:
            return bool(connection.execute(query).scalar_one())


def _columns(limits: Mapping[str, int | Priority | None]) -> dict[str, int | str | None]:
    return {
        name: value.value if isinstance(value, Priority) else value
        for name, value in limits.items()
    }


def _key(row: Row[tuple[object, ...]]) -> Key:
    return Key(
        id=row.id,
        tenant=row.tenant,
        display_name=row.display_name,
        role=Role(row.role),
        create_time=row.create_time,
        revoke_time=row.revoke_time,
        limits=KeyLimits(
            row.requests_per_minute,
            row.tokens_per_minute,
            row.concurrent_generations,
            Priority(row.priority),
        ),
    )
