"""The gateway's tables, on SQLite and on PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from millrace.gateway.v1 import events_pb2
from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.app import Keys
from millrace_gateway.domain import Key, KeyLimits, Priority, Role, secret_digest
from millrace_gateway.store import KEYS, METADATA, OUTBOX, KeyTable
from millrace_runtime import cloudevent, names
from millrace_runtime.database import Database, migrate
from millrace_runtime.outbox import Outbox

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def table(database: Database) -> KeyTable:
    migrate(database, MIGRATIONS)
    return KeyTable(database, Outbox(OUTBOX))


def a_key(tenant: str = "acme", role: Role = Role.MEMBER) -> Key:
    return Key(names.new_id("key"), tenant, "ci", role, NOW)


def facts(database: Database) -> list[cloudevent.Event]:
    with database.transaction() as connection:
        pending = Outbox(OUTBOX).pending(connection, "any")
    return [cloudevent.from_json(fact.document) for fact in pending]


def test_migrations_make_exactly_the_tables(database: Database, table: KeyTable) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_key_and_its_fact(database: Database, table: KeyTable) -> None:
    key = a_key()
    table.add(key, "sha256:1")
    assert table.find_live("sha256:1") == key
    assert table.find_live("sha256:2") is None
    (fact,) = facts(database)
    assert fact.subject == "millrace.acme.gateway.key.created"
    assert fact.message == events_pb2.KeyCreated(key=f"tenants/acme/keys/{key.id}")


def test_of_gateways_that_start_together_one_makes_the_operators_key(
    database: Database, table: KeyTable, tmp_path: Path
) -> None:
    path, together = tmp_path / "operator-key", threading.Barrier(4)

    def start(_number: int) -> None:
        together.wait()
        Keys(table, lambda: None).ensure_operator("default", path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    (key,) = table.page("default", 10, "")
    assert table.find_live(secret_digest(path.read_text().strip())) == key


def test_two_keys_cannot_share_a_secret(database: Database, table: KeyTable) -> None:
    table.add(a_key(), "sha256:1")
    with pytest.raises(Exception, match=r"(?i)unique"):
        table.add(a_key(), "sha256:1")
    assert len(facts(database)) == 1, "a row that failed leaves no fact"


def test_revoking_twice_is_as_once(database: Database, table: KeyTable) -> None:
    key = a_key()
    table.add(key, "sha256:1")
    later = NOW.replace(hour=5)
    assert table.revoke("acme", key.id, NOW) == table.revoke("acme", key.id, later)
    assert table.find_live("sha256:1") is None
    kinds = [fact.fact.fact for fact in facts(database)]
    assert kinds == ["key.created", "key.revoked"]


def test_limits_are_kept_and_changed(database: Database, table: KeyTable) -> None:
    key = replace(a_key(), limits=KeyLimits(60, 100_000, 4, Priority.HIGH))
    table.add(key, "sha256:1")
    assert table.find_live("sha256:1") == key
    changes = {"requests_per_minute": None, "priority": Priority.LOW}
    changed = table.change_limits("acme", key.id, changes)
    assert changed == replace(key, limits=KeyLimits(None, 100_000, 4, Priority.LOW))
    assert table.find_live("sha256:1") == changed
    assert table.change_limits("default", key.id, changes) is None
    table.revoke("acme", key.id, NOW)
    revoked = table.change_limits("acme", key.id, {"tokens_per_minute": 1})
    assert revoked is not None and revoked.limits == changed.limits
    kinds = [fact.fact.fact for fact in facts(database)]
    assert kinds == ["key.created", "key.updated", "key.revoked"]


def test_a_process_that_knows_no_limits_yet_can_make_keys(
    database: Database, table: KeyTable
) -> None:
    """While a gateway is restarted the old one still runs, on the new tables."""
    old = sa.text(
        "INSERT INTO keys (id, tenant, display_name, role, secret_digest, create_time) "
        "VALUES ('key-1', 'acme', '', 'member', 'sha256:1', :now)"
    )
    with database.transaction() as connection:
        connection.execute(old.bindparams(sa.bindparam("now", NOW, KEYS.c.create_time.type)))
    found = table.find_live("sha256:1")
    assert found is not None and found.limits == KeyLimits()


def test_a_key_is_its_tenants_alone(table: KeyTable) -> None:
    key = a_key("acme")
    table.add(key, "sha256:1")
    assert table.revoke("default", key.id, NOW) is None
    assert table.find_live("sha256:1") == key
    assert table.page("default", 10, "") == []
    assert table.page("acme", 10, "") == [key]


def test_operators(table: KeyTable) -> None:
    table.add(a_key(role=Role.MEMBER), "sha256:1")
    assert not table.has_live_operator()
    operator = a_key(role=Role.OPERATOR)
    table.add(operator, "sha256:2")
    assert table.has_live_operator()
    table.revoke("acme", operator.id, NOW)
    assert not table.has_live_operator()
    assert table.knows("sha256:2")
    assert not table.knows("sha256:3")
