"""Rows, facts and leases, on SQLite and PostgreSQL."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from compressor_builders import TIME, checkpoint, content, order
from sqlalchemy import select

import millrace_compressor
from millrace_compressor.domain import (
    SUPERSEDED,
    Compression,
    Failure,
    Measurements,
    State,
    Verdict,
)
from millrace_compressor.events import FactRecorder
from millrace_compressor.schema import METADATA, OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_runtime import cloudevent
from millrace_runtime.database import Database, migrate
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock

MEASURED = Measurements(original_perplexity=10.0, artifact_perplexity=10.1)
MIGRATIONS = Path(millrace_compressor.__file__).parent / "migrations"


@pytest.fixture
def store(database: Database, clock: FakeClock) -> CompressionStore:
    migrate(database, MIGRATIONS)
    record = FactRecorder(Outbox(OUTBOX))
    return CompressionStore(database, record, owner="a", lease_seconds=10, now=clock)


def facts(database: Database) -> list[str]:
    """Kinds of the recorded facts, in order."""
    with database.transaction() as connection:
        documents = connection.execute(select(OUTBOX.c.document).order_by(OUTBOX.c.sequence))
        return [cloudevent.from_json(document).fact.fact for document in documents.scalars()]


def claim(store: CompressionStore) -> Lease:
    lease = store.claim()
    assert lease is not None
    return lease


def get(store: CompressionStore, made: Compression) -> Compression:
    found = store.get(made.tenant, made.id)
    assert found is not None
    return found


def test_the_migrations_make_the_schema(database: Database) -> None:
    migrate(database, MIGRATIONS)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_same_order_twice_is_one_compression(store: CompressionStore) -> None:
    assert store.add(order()).id == store.add(order()).id
    assert len(store.page("acme", "", "", 10)) == 1


def test_another_task_is_another_compression(store: CompressionStore) -> None:
    task = {"file": "tenants/acme/files/file-1", "metric": "TASK_METRIC_CONTAINS"}
    judged = replace(order(), task=task)
    plain, made = store.add(order()), store.add(judged)
    assert plain.id != made.id == store.add(judged).id
    assert get(store, made).order.task == task
    assert get(store, plain).order.task == {}


def test_another_tenant_sees_nothing_of_it(store: CompressionStore) -> None:
    made = store.add(order())
    assert store.get("other", made.id) is None
    assert store.page("other", "", "", 10) == []
    assert [found.id for found in store.page("-", "", "", 10)] == [made.id]


def test_a_considered_checkpoint_is_remembered_even_if_nobody_wanted_it(
    store: CompressionStore,
) -> None:
    name = checkpoint().name
    assert not store.is_considered(name)
    store.consider(name, [])
    assert store.is_considered(name)


def test_a_newer_checkpoint_supersedes_older_queued_ones_but_no_final_one(
    store: CompressionStore,
) -> None:
    older, final, newer = store.add(order(1)), store.add(order(2, final=True)), store.add(order(3))
    assert get(store, older).state == State.CANCELLED
    assert get(store, older).failure == Failure(
        "SUPERSEDED", "a newer checkpoint of its run came before its turn"
    )
    assert get(store, final).state == State.QUEUED
    assert get(store, newer).state == State.QUEUED


def test_an_older_checkpoint_that_is_told_of_later_is_superseded_too(
    store: CompressionStore,
) -> None:
    newer, older, final = store.add(order(3)), store.add(order(1)), store.add(order(2, final=True))
    assert get(store, older).failure == SUPERSEDED
    assert get(store, newer).state == State.QUEUED
    assert get(store, final).state == State.QUEUED


def test_runs_of_one_model_do_not_supersede_each_other(store: CompressionStore) -> None:
    first = store.add(order(1))
    of_other = replace(checkpoint(9), name="tenants/acme/runs/run-2/checkpoints/ckpt-demo-9")
    store.add(replace(order(9), checkpoint=of_other))
    assert get(store, first).state == State.QUEUED


def test_what_a_person_asked_for_is_not_superseded(store: CompressionStore) -> None:
    by_hand = store.add(replace(order(1), deployment=""))
    store.add(order(2))
    assert get(store, by_hand).state == State.QUEUED


def test_one_that_is_superseded_before_its_worker_started_it_stays_so(
    store: CompressionStore,
) -> None:
    older, lease = store.add(order(1)), claim(store)
    store.add(order(2))
    with pytest.raises(LeaseLost):
        store.start(lease)
    assert get(store, older).failure == SUPERSEDED


def test_a_running_one_is_not_superseded(store: CompressionStore) -> None:
    running = store.add(order(1))
    store.start(claim(store))
    store.add(order(2))
    assert get(store, running).state == State.RUNNING


def test_its_first_start_is_remembered(store: CompressionStore, clock: FakeClock) -> None:
    store.add(order())
    store.start(claim(store))
    clock.advance(11)
    assert store.start(claim(store)).start_time == TIME


def test_a_passed_one_is_a_fact_with_the_state(store: CompressionStore, database: Database) -> None:
    made = store.add(order())
    lease = claim(store)
    store.start(lease)
    store.succeed(lease, content("a"), MEASURED, Verdict(passed=True))
    ended = get(store, made)
    assert (ended.state, ended.artifact, ended.measurements) == (
        State.SUCCEEDED,
        content("a"),
        MEASURED,
    )
    assert facts(database) == ["artifact.finished"]
    assert store.claim() is None


def test_a_rejection_and_a_failure_are_facts_too(
    store: CompressionStore, database: Database
) -> None:
    store.add(order(1, final=True))
    store.add(order(2, final=True))
    store.succeed(claim(store), content("a"), MEASURED, Verdict(False, ("too bad",)))
    store.fail(claim(store), Failure("CHECKPOINT_INVALID", "it is damaged"))
    assert facts(database) == ["compression.rejected", "compression.failed"]


def test_a_worker_that_was_overtaken_changes_nothing(
    store: CompressionStore, database: Database, clock: FakeClock
) -> None:
    made = store.add(order())
    stale = claim(store)
    clock.advance(11)
    current = claim(store)
    with pytest.raises(LeaseLost):
        store.succeed(stale, content("b"), MEASURED, Verdict(passed=True))
    assert get(store, made).state == State.QUEUED
    assert facts(database) == []
    store.succeed(current, content("a"), MEASURED, Verdict(passed=True))
    assert facts(database) == ["artifact.finished"]


def test_cancelling_takes_the_work_away(store: CompressionStore) -> None:
    made = store.add(order())
    lease = claim(store)
    cancelled = store.cancel("acme", made.id)
    assert cancelled is not None
    assert cancelled.state == State.CANCELLED
    with pytest.raises(LeaseLost):
        store.renew(lease)
    assert store.claim() is None


def test_cancelling_what_has_ended_changes_nothing(store: CompressionStore) -> None:
    made = store.add(order())
    store.fail(claim(store), Failure("CHECKPOINT_INVALID", "it is damaged"))
    again = store.cancel("acme", made.id)
    assert again is not None
    assert again.state == State.FAILED
    assert store.cancel("acme", "compression-none") is None


def test_pages_are_newest_first(store: CompressionStore, clock: FakeClock) -> None:
    made = [store.add(order(step, final=True)).id for step in (1, 2, 3)]
    newest = sorted(made, reverse=True)
    assert [found.id for found in store.page("acme", "demo", "", 2)] == newest[:2]
    assert [found.id for found in store.page("acme", "demo", newest[1], 2)] == newest[2:]
    assert store.page("acme", "other", "", 2) == []
    assert clock() - TIME == timedelta(0)
