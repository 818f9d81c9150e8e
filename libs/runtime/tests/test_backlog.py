"""What waits in a database, as it is told in metrics."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import Column, MetaData, String, Table, update

from millrace.data.v1 import events_pb2
from millrace_runtime import backlog, leases
from millrace_runtime.database import Database
from millrace_runtime.leases import lease_columns
from millrace_runtime.outbox import Outbox, outbox_table

METADATA = MetaData()
OUTBOX_TABLE = outbox_table(METADATA)
OUTBOX = Outbox(OUTBOX_TABLE)
WORK = Table(
    "work_of_backlog",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("state", String(16), nullable=False),
    *lease_columns(),
)


@pytest.fixture
def store(database: Database) -> Iterator[Database]:
    METADATA.create_all(database.engine)
    leases._CLAIMED.clear()
    yield database
    leases._CLAIMED.clear()


def value(metric: str) -> float:
    found = REGISTRY.get_sample_value(metric)
    assert found is not None
    return found


def claim(store: Database, now: datetime, seconds: float) -> leases.Lease | None:
    with store.transaction() as connection:
        return leases.claim(
            connection,
            WORK,
            WORK.c.state == "QUEUED",
            owner="test",
            now=now,
            duration=timedelta(seconds=seconds),
        )


def test_facts_that_wait_and_the_age_of_the_oldest(store: Database) -> None:
    backlog.measure(store, OUTBOX)
    assert value("millrace_outbox_unpublished_facts") == 0
    assert value("millrace_outbox_oldest_fact_seconds") == 0
    with store.transaction() as connection:
        for name in ("one", "two"):
            OUTBOX.record(connection, "acme", events_pb2.DatasetReady(dataset=name))
    backlog.measure(store, OUTBOX, datetime.now(UTC) + timedelta(hours=1))
    assert value("millrace_outbox_unpublished_facts") == 2
    assert 3599 < value("millrace_outbox_oldest_fact_seconds") < 3700
    with store.transaction() as connection:
        connection.execute(update(OUTBOX_TABLE).values(published_in="life"))
    backlog.measure(store, OUTBOX)
    assert value("millrace_outbox_oldest_fact_seconds") == 0


def test_work_that_nobody_took_over(store: Database) -> None:
    now = datetime.now(UTC)
    with store.transaction() as connection:
        rows = [{"id": str(number), "state": "QUEUED"} for number in range(3)]
        connection.execute(WORK.insert(), rows)
    assert claim(store, now, 15) is not None  # goes on
    assert claim(store, now - timedelta(minutes=2), 15) is not None  # ended long ago
    backlog.measure(store, OUTBOX, now)
    assert value("millrace_work_expired_leases") == 1
    with store.transaction() as connection:
        connection.execute(update(WORK).values(state="SUCCEEDED"))
    backlog.measure(store, OUTBOX, now)
    assert value("millrace_work_expired_leases") == 0


def test_whether_commits_are_durable(store: Database) -> None:
    backlog.measure(store, OUTBOX)
    assert value("millrace_database_durable") == 1
    with store.engine.connect() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        weaker = "PRAGMA synchronous=NORMAL" if is_sqlite else "SET synchronous_commit = off"
        if is_sqlite:  # not within a transaction
            connection.rollback()
            assert connection.connection.driver_connection is not None
            connection.connection.driver_connection.execute(weaker)
        else:
            connection.exec_driver_sql(weaker)
            connection.commit()
    # The pool gives the same connection again.
    assert not store.is_durable()


def test_a_database_that_is_away_breaks_nothing(store: Database) -> None:
    METADATA.drop_all(store.engine)
    backlog.measure(store, OUTBOX)
