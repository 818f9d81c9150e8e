import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tuner_parts import LEASE_SECONDS, Parts

from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import AlreadyExists
from millrace_runtime.leases import LeaseLost
from millrace_tuner import convert, steps
from millrace_tuner.__main__ import MIGRATIONS
from millrace_tuner.domain import Checkpoint, Content, Job, JobState, Outcome, Progress
from millrace_tuner.methods import RewardModel
from millrace_tuner.schema import METADATA


def checkpoint_of(job: Job, id: str, step: int, final: bool = False) -> Checkpoint:
    content = Content(f"file:///{step}", f"sha256:{step}", 10)
    return Checkpoint(
        job.tenant,
        job.id,
        id,
        job.tuned_model,
        step,
        2.5,
        None,
        1000,
        final,
        content,
        "sha256:base",
        "sha256:file",
        job.create_time,
    )


def test_migrations_make_exactly_the_schema(database: Database) -> None:
    migrate(database, MIGRATIONS)
    migrate(database, MIGRATIONS)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_job_comes_back_as_it_was_stored(stored: Parts) -> None:
    job = stored.create(suffix="docs", seed=2**64 - 1, metadata={"team": "a"})
    assert stored.store.get("acme", job.id) == job
    assert job.plan.seed == 2**32 - 1
    assert stored.store.get("other", job.id) is None


def test_a_request_sent_twice_makes_one_job(stored: Parts) -> None:
    first = stored.create("r1", suffix="a")
    assert stored.create("r1", suffix="a") == first
    with pytest.raises(AlreadyExists):
        stored.create("r1", suffix="b")
    assert len(stored.store.page("acme", "", 10)) == 1


def test_equal_requests_at_the_same_time_make_one_job(stored: Parts) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: stored.create("r1"), range(4)))
    assert len({job.id for job in made}) == 1


def test_pages_are_newest_first_and_by_tenant(stored: Parts) -> None:
    ids = [stored.create().id for _ in range(3)]
    newest = sorted(ids, reverse=True)
    assert [job.id for job in stored.store.page("acme", "", 2)] == newest[:2]
    assert [job.id for job in stored.store.page("-", newest[1], 2)] == newest[2:]
    assert stored.store.page("other", "", 2) == []


def test_one_worker_at_a_time_has_a_job(stored: Parts) -> None:
    stored.create()
    lease = stored.claim()
    other = stored.store_of("other")
    assert other.claim() is None
    stored.clock.advance(LEASE_SECONDS - 1)
    lease = stored.store.renew(lease)
    stored.clock.advance(LEASE_SECONDS - 1)
    assert other.claim() is None
    stored.clock.advance(2)
    taken = other.claim()
    assert taken is not None
    assert taken.epoch == lease.epoch + 1


def test_what_an_old_epoch_writes_is_refused(stored: Parts) -> None:
    job = stored.create()
    lease = stored.claim()
    stored.clock.advance(LEASE_SECONDS + 1)
    assert stored.store_of("other").claim() is not None
    with pytest.raises(LeaseLost):
        stored.store.change_leased(lease, lambda job: steps.start(job, stored.clock()))
    with pytest.raises(LeaseLost):
        stored.store.add_checkpoint(lease, checkpoint_of(job, "ckpt-1", 1))
    assert stored.store.get("acme", job.id) == job
    assert stored.facts() == []
    stored.store.let_go(lease)
    assert stored.store_of("third").claim() is None


@pytest.mark.parametrize("step", [steps.cancel, steps.pause])
def test_cancelling_and_pausing_take_the_lease_away(stored: Parts, step: object) -> None:
    assert callable(step)
    job = stored.create()
    lease = stored.claim()
    stored.store.change("acme", job.id, lambda job: step(job, stored.clock()))
    with pytest.raises(LeaseLost):
        stored.store.renew(lease)


def test_a_resumed_job_waits_until_its_old_worker_has_let_go(stored: Parts) -> None:
    job = stored.create()
    lease = stored.claim()
    stored.app.pause("acme", job.id)
    assert stored.store.claim() is None
    stored.app.resume("acme", job.id)
    assert stored.store_of("other").claim() is None  # the old process may still be writing
    stored.store.let_go(lease)
    assert stored.store_of("other").claim() is not None


def test_a_job_whose_training_has_ended_is_no_work(stored: Parts) -> None:
    stored.create()
    stored.train()
    stored.clock.advance(LEASE_SECONDS + 1)
    assert stored.store.claim() is None


def test_a_checkpoint_told_twice_is_one_with_one_fact(stored: Parts) -> None:
    job = stored.create()
    lease = stored.claim()
    first = stored.store.add_checkpoint(lease, checkpoint_of(job, "ckpt-1", 10))
    again = stored.store.add_checkpoint(lease, checkpoint_of(job, "ckpt-9", 10))
    assert again == first
    assert stored.fact_kinds() == ["checkpoint.finished"]
    assert stored.store.checkpoint("acme", job.id, "ckpt-1") == first
    assert stored.store.checkpoint("other", job.id, "ckpt-1") is None
    assert stored.told(job.id).count("Checkpoint created at step 10") == 1


def test_a_checkpoint_that_is_not_served_says_so_and_is_no_fact(stored: Parts) -> None:
    """Whoever lists checkpoints must know what no fact told of."""
    job = stored.create(method=RewardModel())
    made = stored.store.add_checkpoint(stored.claim(), checkpoint_of(job, "ckpt-1", 10))
    assert not made.served
    assert stored.store.checkpoint("acme", job.id, "ckpt-1") == made
    assert stored.fact_kinds() == []
    assert convert.checkpoint_to_proto(made).unserved


def test_checkpoints_are_listed_newest_first_by_job_or_all(stored: Parts) -> None:
    job = stored.create()
    lease = stored.claim()
    for number in (1, 2, 3):
        stored.store.add_checkpoint(lease, checkpoint_of(job, f"ckpt-{number}", number))
    listed = stored.store.checkpoints("acme", job.id, "", 2)
    assert [checkpoint.id for checkpoint in listed] == ["ckpt-3", "ckpt-2"]
    rest = stored.store.checkpoints("-", "-", "ckpt-2", 2)
    assert [checkpoint.id for checkpoint in rest] == ["ckpt-1"]
    assert stored.store.checkpoints("acme", "ftjob-other", "", 2) == []


def test_what_is_told_once_is_not_told_again(stored: Parts) -> None:
    job = stored.create()
    lease = stored.claim()
    made = Progress("train", 1, 60, {"train_loss": 2.5})
    for _ in range(2):
        stored.store.change_leased(lease, lambda job: steps.progress(job, made, stored.clock()))
    assert stored.told(job.id)[-1] == "Step 1/60: training loss=2.50"
    assert stored.told(job.id).count("Step 1/60: training loss=2.50") == 1


def test_jobs_that_wait_for_their_rollout_are_found_until_it_is_decided(stored: Parts) -> None:
    stored.create()
    job, _ = stored.train()
    assert stored.store.awaiting_outcome() == [job]
    stored.store.change("acme", job.id, lambda job: steps.settle(job, Outcome(), stored.clock()))
    assert stored.store.awaiting_outcome() == []
    assert stored.store.count_by_state() == {"SUCCEEDED": 1}


def test_a_step_that_fails_changes_nothing(stored: Parts) -> None:
    job = stored.create()

    def broken(job: Job) -> steps.Change:
        raise steps.WrongState("no")

    with pytest.raises(steps.WrongState):
        stored.store.change("acme", job.id, broken)
    assert stored.store.get("acme", job.id) == job


def test_steps_at_the_same_time_are_taken_one_after_the_other(stored: Parts) -> None:
    job = stored.create()
    start = threading.Barrier(4)

    def count(_number: int) -> None:
        start.wait()
        stored.store.change(
            "acme",
            job.id,
            lambda job: steps.Change(replace(job, attempts=job.attempts + 1)),
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    found = stored.store.get("acme", job.id)
    assert found is not None
    assert found.attempts == 4
    assert found.state == JobState.QUEUED


def test_jobs_are_found_by_their_metadata(parts: Parts) -> None:
    blue = parts.create(metadata={"team": "blue", 'it\'s "odd"': "$.x"}).id
    bare = parts.create().id
    assert [job.id for job in parts.store.page("acme", "", 10, {"team": "blue"})] == [blue]
    assert [job.id for job in parts.store.page("acme", "", 10, {'it\'s "odd"': "$.x"})] == [blue]
    assert parts.store.page("acme", "", 10, {"team": "blue", "it's": "x"}) == []
    assert [job.id for job in parts.store.page("acme", "", 10, {})] == [bare]
    assert [job.id for job in parts.store.page("acme", "", 10)] == [bare, blue]
