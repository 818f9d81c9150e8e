import threading
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from trainer_builders import CORPUS, DATASET, DIGEST, LATE, LEASE_SECONDS, Parts, checkpoint_of

from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import AlreadyExists
from millrace_runtime.leases import Lease, LeaseLost
from millrace_trainer.__main__ import MIGRATIONS
from millrace_trainer.domain import Failure, Progress, RequestKey, State
from millrace_trainer.schema import METADATA
from millrace_trainer.store import RunStore


def claimed(store: RunStore) -> Lease:
    lease = store.claim()
    assert lease is not None
    return lease


def test_migrations_make_exactly_the_schema(database: Database) -> None:
    migrate(database, MIGRATIONS)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database, MIGRATIONS)
    migrate(database, MIGRATIONS)


def test_a_run_comes_back_as_it_went_in(parts: Parts) -> None:
    run = parts.create(hyperparameters={"learning_rate": 0.001, "seed": 2**63 - 1})
    assert parts.store.get("acme", run.id) == run
    assert parts.store.get("globex", run.id) is None


def test_a_request_made_twice_is_one_run(parts: Parts) -> None:
    first = parts.create(request=RequestKey("r1", DIGEST))
    assert parts.create(request=RequestKey("r1", DIGEST)) == first
    with pytest.raises(AlreadyExists):
        parts.create(request=RequestKey("r1", "sha256:" + "cd" * 32))
    assert [run.id for run in parts.store.page("acme", "", 10)] == [first.id]


def test_requests_that_race_make_one_run(parts: Parts) -> None:
    made: list[str] = []
    barrier = threading.Barrier(4)

    def create() -> None:
        barrier.wait()
        made.append(parts.create(request=RequestKey("r1", DIGEST)).id)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_only_one_worker_holds_a_run(parts: Parts) -> None:
    parts.create()
    one, other = parts.store_of("one"), parts.store_of("other")
    first = claimed(one)
    assert other.claim() is None
    parts.clock.advance(LEASE_SECONDS - 1)
    first = one.renew(first)
    parts.clock.advance(LEASE_SECONDS - 1)
    assert other.claim() is None
    parts.clock.advance(2)
    assert claimed(other).epoch > first.epoch


def test_a_run_given_back_is_taken_at_once(parts: Parts) -> None:
    parts.create()
    first = claimed(parts.store)
    parts.store.release(first)
    assert claimed(parts.store).epoch == first.epoch + 1


def test_a_worker_that_lost_its_lease_writes_nothing(parts: Parts) -> None:
    run = parts.create()
    stale = claimed(parts.store)
    parts.clock.advance(LEASE_SECONDS + 1)
    claimed(parts.store_of("other"))
    before = parts.now(run)
    for write in (
        lambda: parts.store.start(stale),
        lambda: parts.store.record_progress(stale, Progress("train", 1, 2, {"loss": 1.0})),
        lambda: parts.store.add_checkpoint(stale, checkpoint_of(run), 1000),
        lambda: parts.store.count_attempt(stale),
        lambda: parts.store.put_off(stale, timedelta(seconds=1)),
        lambda: parts.store.succeed(stale),
        lambda: parts.store.fail(stale, Failure("X", "y")),
        lambda: parts.store.renew(stale),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert parts.now(run) == before
    assert parts.store.metric_page(run.id, -1, 10) == []
    assert parts.store.checkpoint_page("acme", run.id, "", 10) == []
    assert parts.facts() == []


def test_a_run_starts_once_however_often_it_is_taken_up(parts: Parts) -> None:
    run = parts.create()
    lease = claimed(parts.store)
    assert parts.store.start(lease).state is State.RUNNING
    parts.store.release(lease)
    parts.store.start(claimed(parts.store))
    assert parts.subjects() == ["run.started"]
    ((_, _, data),) = parts.facts()
    assert data == {
        "run": run.name,
        "model": "demo",
        "dataset": CORPUS,
        "dataset_digest": DATASET.digest,
    }


def test_a_checkpoint_reported_twice_is_one_row_and_one_fact(parts: Parts) -> None:
    run = parts.create()
    lease = claimed(parts.store)
    first = checkpoint_of(run, step=100, id="ckpt-first")
    parts.store.add_checkpoint(lease, first, 5_000_000)
    parts.store.add_checkpoint(lease, checkpoint_of(run, step=100, id="ckpt-again"), 5_000_000)
    parts.store.add_checkpoint(lease, checkpoint_of(run, step=200), 5_000_000)
    steps = [found.step for found in parts.store.checkpoint_page("acme", run.id, "", 10)]
    assert sorted(steps) == [100, 200]
    assert parts.store.get_checkpoint("acme", run.id, "ckpt-first") == first
    assert parts.store.get_checkpoint("acme", run.id, "ckpt-again") is None
    assert parts.subjects() == ["checkpoint.finished"] * 2
    assert parts.now(run).parameter_count == 5_000_000


def test_a_step_measured_again_replaces_its_measurement(parts: Parts) -> None:
    run = parts.create()
    lease = claimed(parts.store)
    for step, loss in ((1, 5.0), (2, 4.0), (2, 3.5), (3, 3.0)):
        parts.store.record_progress(lease, Progress("train", step, 3, {"loss": loss}))
    parts.store.record_progress(lease, Progress("start", 0, 3))
    found = parts.store.metric_page(run.id, -1, 10)
    measured = [(metric.step, metric.metrics["loss"]) for metric in found]
    assert measured == [(1, 5.0), (2, 3.5), (3, 3.0)]
    assert [metric.step for metric in parts.store.metric_page(run.id, 1, 1)] == [2]
    assert parts.now(run).progress == Progress("start", 0, 3)


def test_a_run_without_its_dataset_is_not_claimed(parts: Parts) -> None:
    run = parts.create(dataset=LATE)
    assert run.dataset is None
    assert parts.store.waiting_datasets() == [LATE]
    assert parts.store.claim() is None
    parts.store.dataset_ready(CORPUS, DATASET)
    assert parts.store.claim() is None
    parts.store.dataset_ready(LATE, DATASET)
    assert parts.store.waiting_datasets() == []
    assert claimed(parts.store).id == run.id


def test_a_dataset_that_fails_fails_those_that_wait_for_it(parts: Parts) -> None:
    ready, one, two = parts.create(), parts.create(dataset=LATE), parts.create(dataset=LATE)
    for _ in range(2):  # the fact, and the reconciler that learned the same
        parts.store.dataset_failed(LATE, Failure("DATASET_FAILED", "too small"))
    assert [parts.now(run).state for run in (ready, one, two)] == [
        State.QUEUED,
        State.FAILED,
        State.FAILED,
    ]
    assert parts.now(one).failure == Failure("DATASET_FAILED", "too small")
    assert parts.subjects() == ["run.failed", "run.failed"]


@pytest.mark.parametrize("taken_away", ["cancel", "pause"])
def test_cancelling_and_pausing_take_the_lease_away(parts: Parts, taken_away: str) -> None:
    run = parts.create()
    lease = claimed(parts.store)
    parts.store.start(lease)
    getattr(parts.store, taken_away)("acme", run.id)
    with pytest.raises(LeaseLost):
        parts.store.renew(lease)
    with pytest.raises(LeaseLost):
        parts.store.add_checkpoint(lease, checkpoint_of(run), 1)
    assert parts.store.claim() is None
    said = ["run.started", "run.cancelled"] if taken_away == "cancel" else ["run.started"]
    assert parts.subjects() == said


def test_a_paused_run_is_taken_up_where_it_is_resumed(parts: Parts) -> None:
    run = parts.create()
    lease = claimed(parts.store)
    parts.store.pause("acme", run.id)
    parts.store.resume("acme", run.id)
    assert parts.now(run).state is State.QUEUED
    assert claimed(parts.store).epoch > lease.epoch + 1


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_nothing_changes_a_run_that_has_ended(parts: Parts, action: str) -> None:
    run = parts.create()
    parts.store.succeed(claimed(parts.store))
    ended = parts.now(run)
    getattr(parts.store, action)("acme", run.id)
    assert parts.now(run) == ended
    assert parts.subjects() == ["run.succeeded"]


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_another_tenant_changes_nothing(parts: Parts, action: str) -> None:
    run = parts.create()
    assert getattr(parts.store, action)("globex", run.id) is None
    assert parts.now(run) == run


def test_a_failed_transaction_leaves_neither_state_nor_fact(parts: Parts) -> None:
    """The fact is written in the transaction of its state: what undoes one undoes the other."""
    run = parts.create()

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    store = parts.store_of("one")
    store._record = refuse
    lease = claimed(store)
    for write in (
        lambda: store.start(lease),
        lambda: store.add_checkpoint(lease, checkpoint_of(run), 1),
        lambda: store.succeed(lease),
    ):
        with pytest.raises(OSError, match="no space"):
            write()
    assert parts.now(run) == run
    assert parts.store.checkpoint_page("acme", run.id, "", 10) == []


def test_pages_go_backwards_and_keep_tenants_apart(parts: Parts) -> None:
    runs = [parts.create() for _ in range(3)]
    newest_first = [run.id for run in reversed(runs)]
    assert [run.id for run in parts.store.page("acme", "", 2)] == newest_first[:2]
    assert [run.id for run in parts.store.page("acme", newest_first[1], 2)] == newest_first[2:]
    assert parts.store.page("globex", "", 10) == []
    assert len(parts.store.page("-", "", 10)) == 3
    lease = claimed(parts.store)
    parts.store.add_checkpoint(lease, checkpoint_of(runs[0]), 1)
    assert len(parts.store.checkpoint_page("-", "-", "", 10)) == 1
    assert parts.store.checkpoint_page("globex", "-", "", 10) == []
    assert parts.store.count_by_state() == {"QUEUED": 3}
