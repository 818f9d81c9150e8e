"""pytest fixtures, available in every test (registered as a pytest plugin)."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from millrace_runtime.database import Database, open_database
from millrace_testkit.clock import FakeClock
from millrace_testkit.servers import NatsServer, PostgresServer, find_postgres


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server with an empty store."""
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL server: ``MILLRACE_TEST_POSTGRES_URL``, or one started here."""
    configured = os.environ.get("MILLRACE_TEST_POSTGRES_URL")
    if configured:
        yield configured
        return
    if find_postgres() is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    # Below /tmp itself: the postgres user may not enter pytest's private directories.
    server = PostgresServer(Path(f"/tmp/millrace-postgres-{uuid.uuid4().hex[:8]}"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database: SQLite as embedded, then PostgreSQL in a schema of its own."""
    if request.param == "sqlite":
        opened = open_database(f"sqlite:///{tmp_path}/service.db")
        yield opened
        opened.close()
        return
    url = request.getfixturevalue("postgres_url")
    schema = f"test_{uuid.uuid4().hex[:12]}"
    administration = open_database(url)
    with administration.transaction() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    opened = open_database(f"{url}?options=-csearch_path%3D{schema}")
    yield opened
    opened.close()
    with administration.transaction() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    administration.close()
