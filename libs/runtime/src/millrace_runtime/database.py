"""The service's database: SQLite (embedded default) or PostgreSQL (production), by URL.

SQLite runs in WAL mode with ``synchronous=FULL``: measured under power loss, WAL with
``NORMAL`` lost every commit since the last checkpoint, ``FULL`` lost none. Every
transaction begins ``IMMEDIATE``, so that two writers queue instead of failing half-way.
One process uses a SQLite database at a time (two while one follows the other in a rolling
restart): a second could not write while the first is stopped amid a transaction, for as long
as that is.

PostgreSQL serves several processes, and ends the transaction of one that was stopped or cut
off in the middle: its locks would keep everybody else from its work. Both limits can be set
otherwise in the URL (``?options=-c idle_in_transaction_session_timeout=…``).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, DateTime, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator

LOG = logging.getLogger(__name__)

_BUSY_TIMEOUT_MILLISECONDS = 15_000
_SYNCHRONOUS_FULL = 2  # https://www.sqlite.org/pragma.html#pragma_synchronous
# Our transactions take milliseconds. A process that lets one lie for so long is stopped, frozen
# or cut off, and its lease (15 s) is about to end: whoever takes over must find no lock there.
_IDLE_TRANSACTION_MILLISECONDS = 10_000
# As long as SQLite waits, and longer than anybody stopped can hold a lock.
_LOCK_TIMEOUT_MILLISECONDS = 15_000
_MIGRATION_LOCK = 6_455_223  # any number that nothing else in the database uses


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time. Goes in and comes out aware, in UTC; SQLite itself keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Database:
    """An engine and its transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self.engine.begin() as connection:
            yield connection

    def is_alive(self) -> bool:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql("SELECT 1").scalar() == 1

    def is_durable(self) -> bool:
        """Whether a commit is on the disk before it returns, by the connection's own settings."""
        with self.engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                commit = connection.exec_driver_sql("SHOW synchronous_commit").scalar()
                fsync = connection.exec_driver_sql("SHOW fsync").scalar()
                return commit != "off" and fsync == "on"
            synchronous = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
            journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            return int(synchronous) >= _SYNCHRONOUS_FULL and journal == "wal"

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Connect to ``url``; a SQLite file's directory is made."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return Database(engine)
    if parsed.get_driver_name() == "psycopg2":
        parsed = parsed.set(drivername="postgresql+psycopg")
    limits = (
        f"-c idle_in_transaction_session_timeout={_IDLE_TRANSACTION_MILLISECONDS}"
        f" -c lock_timeout={_LOCK_TIMEOUT_MILLISECONDS}"
    )
    told = parsed.query.get("options", "")
    options = f"{limits} {told if isinstance(told, str) else ' '.join(told)}"  # the last one counts
    parsed = parsed.update_query_dict({"options": options})
    return Database(create_engine(parsed, pool_pre_ping=True))


def hold_locks(connection: Connection) -> None:
    """Let the transaction of ``connection`` hold its locks for as long as it takes.

    For one that waits for something outside the database which must not overlap with what
    others do once the locks are gone.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")


def migrate(database: Database, migrations: Path) -> None:
    """Bring the schema to the newest revision of the Alembic scripts in ``migrations``.

    Of processes that start at the same time, one does it and the others wait. A schema that is
    newer than the scripts is left as it is: revisions only add (``tests/chaos/test_migrations.py``
    holds them to it), so older code can work on it while a newer process takes its place, and
    when that one is taken back.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations))
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        found = MigrationContext.configure(connection).get_current_revision()
        scripts = ScriptDirectory.from_config(config).walk_revisions()
        if found is not None and found not in {script.revision for script in scripts}:
            LOG.warning("the schema is at revision %s, which is newer than this code", found)
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing; _begin_immediate does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MILLISECONDS}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
