"""What PostgreSQL is asked for, since several processes share it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, text
from sqlalchemy.exc import DBAPIError

from millrace_runtime.database import Database, hold_locks, migrate, open_database

METADATA = MetaData()
THINGS = Table(
    "things", METADATA, Column("id", Integer, primary_key=True), Column("name", String(8))
)
LIMIT_MILLISECONDS = 300


@pytest.fixture
def shared(postgres_url: str) -> Iterator[Database]:
    """A database whose transactions may lie idle for 0.3 s."""
    limit = f"-c idle_in_transaction_session_timeout%3D{LIMIT_MILLISECONDS}"
    opened = open_database(f"{postgres_url}?options={limit}")
    with opened.transaction() as connection:
        METADATA.create_all(connection)
        connection.execute(insert(THINGS), [{"id": 1, "name": "free"}])
    yield opened
    METADATA.drop_all(opened.engine)
    opened.close()


def idle(database: Database) -> None:
    """Let a transaction's session outlast the limit; the server's clock says when."""
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_sleep(:s)"), {"s": 3 * LIMIT_MILLISECONDS / 1000})


def test_there_are_limits_unless_the_url_has_others(postgres_url: str, shared: Database) -> None:
    def limits(database: Database) -> list[str]:
        names = ("idle_in_transaction_session_timeout", "lock_timeout")
        with database.transaction() as connection:
            return [str(connection.exec_driver_sql(f"SHOW {n}").scalar()) for n in names]

    plain = open_database(postgres_url)
    assert limits(plain) == ["10s", "15s"]
    assert limits(shared) == ["300ms", "15s"]
    plain.close()


def test_who_stops_amid_a_transaction_keeps_nobody_waiting(
    postgres_url: str, shared: Database
) -> None:
    change = THINGS.update().where(THINGS.c.id == 1)
    other = open_database(postgres_url)
    with pytest.raises(DBAPIError), shared.transaction() as stopped:
        stopped.execute(change.values(name="stale"))
        with other.transaction() as connection:  # waits until the limit ends the other one
            connection.execute(change.values(name="new"))
    with other.transaction() as connection:
        assert connection.execute(select(THINGS.c.name)).scalar() == "new"
    other.close()


def test_who_must_not_be_overtaken_holds_its_locks(postgres_url: str, shared: Database) -> None:
    other = open_database(postgres_url)
    with shared.transaction() as stopped:
        hold_locks(stopped)
        stopped.execute(THINGS.update().where(THINGS.c.id == 1).values(name="held"))
        idle(other)
    with other.transaction() as connection:
        assert connection.execute(select(THINGS.c.name)).scalar() == "held"
    other.close()


VERSION = """
import time
from alembic import op
import sqlalchemy
revision, down_revision = "0001", None
def upgrade():
    op.create_table("made_once", sqlalchemy.Column("id", sqlalchemy.Integer))
    op.execute("SELECT pg_sleep(0.3)")
"""
ENVIRONMENT = """
from alembic import context
connection = context.config.attributes["connection"]
context.configure(connection=connection)
context.run_migrations()
"""


def test_processes_that_start_together_migrate_once(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions/0001.py").write_text(VERSION)
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    schema = "migrated_together"
    administration = open_database(postgres_url)
    with administration.transaction() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    url = f"{postgres_url}?options=-csearch_path%3D{schema}"
    starting = [open_database(url) for _ in range(3)]
    failures: list[Exception] = []

    def start(database: Database) -> None:
        try:
            migrate(database, tmp_path)
        except DBAPIError as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(database,)) for database in starting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for database in starting:
        database.close()
    with administration.transaction() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    administration.close()
