"""Migrations run forward on live data: nothing is lost, and the code before goes on working.

During a rolling restart two versions of a service are at one database. So a revision may add,
and never take away or rename what the code before it reads and writes.
"""

import importlib
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from millrace.topology import STAGES
from millrace_runtime.database import Database, migrate, open_database

FIRST = "0001"
ROWS = 3
ADDITIVE = """
for table in sa.inspect(op.get_bind()).get_table_names():
    if table != "alembic_version":
        op.add_column(table, sa.Column("added_later", sa.String(8)))
op.create_table("added_later", sa.Column("id", sa.String(8), primary_key=True))
"""
DROPPING = 'op.drop_column("outbox", "traceparent")'
REQUIRING = 'op.add_column("outbox", sa.Column("added", sa.String(8), nullable=False))'

Schema = Mapping[str, Mapping[str, Any]]


def migrations_of(stage: str) -> Path:
    package = importlib.import_module(f"millrace_{stage}")
    assert package.__file__ is not None
    return Path(package.__file__).parent / "migrations"


def planted(stage: str, directory: Path, body: str) -> Path:
    """A copy of the stage's scripts with one revision more, which does ``body``."""
    copy = shutil.copytree(migrations_of(stage), directory / "migrations")
    head = revisions(copy)[-1]
    lines = [
        "import sqlalchemy as sa",
        "from alembic import op",
        'revision = "9999"',
        f"down_revision = {head!r}",
        "def upgrade() -> None:",
        textwrap.indent(body.strip(), "    "),
    ]
    (copy / "versions" / "9999_planted.py").write_text("\n".join(lines))
    return copy


def revisions(scripts: Path) -> list[str]:
    """From the first to the newest."""
    config = Config()
    config.set_main_option("script_location", str(scripts))
    return [found.revision for found in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def upgrade(database: Database, scripts: Path, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def tables_of(database: Database) -> list[sa.Table]:
    """The tables as code of this schema's age knows them."""
    metadata = sa.MetaData()
    metadata.reflect(database.engine)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def row(table: sa.Table, number: int) -> dict[str, Any]:
    return {column.name: value(column, number) for column in table.columns}


def value(column: sa.Column[Any], number: int) -> Any:
    kind = column.type
    if isinstance(kind, sa.Boolean):
        return number % 2 == 0
    if isinstance(kind, sa.Integer | sa.Numeric | sa.Float):
        return number
    if isinstance(kind, sa.DateTime):
        return datetime(2030, 1, 1, tzinfo=UTC)
    if isinstance(kind, sa.JSON):
        return {"number": number}
    return f"{column.name}-{number}"[-(getattr(kind, "length", None) or 99) :]


def rows_of(connection: sa.Connection, table: sa.Table) -> list[tuple[Any, ...]]:
    return sorted((tuple(found) for found in connection.execute(sa.select(table))), key=repr)


@contextmanager
def old_code_at_work(database: Database, tables: list[sa.Table]) -> Iterator[list[str]]:
    """Reads and writes what the first revision has, until the block ends; gives what failed."""
    failures: list[str] = []
    rounds, stop = threading.Semaphore(0), threading.Event()

    def work() -> None:
        for number in count(ROWS):
            for table in tables:
                try:
                    with database.transaction() as connection:
                        connection.execute(table.insert().values(row(table, number)))
                        connection.execute(sa.select(table)).all()
                except SQLAlchemyError as error:
                    failures.append(f"{table.name}: {error}")
            rounds.release()
            if stop.wait(0.001):
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert rounds.acquire(timeout=20)
        yield failures
        while rounds.acquire(blocking=False):
            pass
        assert all(rounds.acquire(timeout=20) for _ in range(2))  # one wholly after the block
    finally:
        stop.set()
        thread.join()


def schema_of(database: Database) -> Schema:
    inspector = sa.inspect(database.engine)
    return {
        name: {column["name"]: column for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    }


def breaks(before: Schema, after: Schema) -> list[str]:
    """What the code of ``before`` would stumble over in ``after``."""
    found = [f"table {name} has gone" for name in before.keys() - after.keys()]
    for table in before.keys() & after.keys():
        old, new = before[table], after[table]
        found += [f"{table}.{name} has gone" for name in old.keys() - new.keys()]
        found += [
            f"{table}.{name} must be given, and has no default"
            for name in new.keys() - old.keys()
            if not new[name]["nullable"] and new[name]["default"] is None
        ]
        found += [
            f"{table}.{name} is another type, or must be given now"
            for name in old.keys() & new.keys()
            if str(old[name]["type"]) != str(new[name]["type"])
            or old[name]["nullable"] > new[name]["nullable"]
        ]
    return found


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/service.db")
    yield opened
    opened.close()


@pytest.mark.parametrize("stage", STAGES)
def test_live_data_comes_through_every_revision(
    stage: str, database: Database, tmp_path: Path
) -> None:
    upgrade(database, migrations_of(stage), FIRST)
    tables = tables_of(database)
    assert tables
    with database.transaction() as connection:
        for table in tables:
            connection.execute(table.insert(), [row(table, n) for n in range(ROWS)])
        before = {table.name: rows_of(connection, table) for table in tables}
    scripts = planted(stage, tmp_path, ADDITIVE)
    old = open_database(database.engine.url.render_as_string(hide_password=False))
    with old_code_at_work(old, tables) as failures:
        migrate(database, scripts)
    old.close()
    assert failures == []
    assert "added_later" in schema_of(database)
    with database.transaction() as connection:
        after = {table.name: rows_of(connection, table) for table in tables}
    for table in tables:
        assert len(before[table.name]) == ROWS
        assert set(map(repr, before[table.name])) < set(map(repr, after[table.name]))


@pytest.mark.parametrize("stage", STAGES)
def test_every_revision_only_adds(stage: str, empty: Database) -> None:
    scripts = migrations_of(stage)
    first, *later = revisions(scripts)
    upgrade(empty, scripts, first)
    for revision in later:
        before = schema_of(empty)
        upgrade(empty, scripts, revision)
        assert breaks(before, schema_of(empty)) == [], revision


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (DROPPING, "outbox.traceparent has gone"),
        (REQUIRING, "outbox.added must be given, and has no default"),
    ],
)
def test_a_revision_that_takes_away_is_seen(
    body: str, complaint: str, empty: Database, tmp_path: Path
) -> None:
    upgrade(empty, migrations_of("trainer"), FIRST)
    before, tables = schema_of(empty), tables_of(empty)
    migrate(empty, planted("trainer", tmp_path, body))
    assert breaks(before, schema_of(empty)) == [complaint]
    with old_code_at_work(empty, tables) as failures:
        pass
    assert failures


def test_processes_that_start_at_once_take_turns(database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    code = f"""
        from pathlib import Path
        from millrace_runtime.database import migrate, open_database
        migrate(open_database({url!r}), Path({str(migrations_of("registry"))!r}))
        """
    command_line = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [
        subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [status for _, status in ends] == [0] * 4, ends
    assert "models" in schema_of(database)


def test_older_code_starts_on_a_newer_schema(empty: Database, tmp_path: Path) -> None:
    migrate(empty, planted("data", tmp_path, ADDITIVE))
    migrate(empty, migrations_of("data"))
    assert "added_later" in schema_of(empty)
