"""A search is carried out once, resumed where it broke off, and its winner written, or not."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from registry_builders import World
from sqlalchemy import insert
from tuning_builders import BEST, ENDPOINT, WISH, Parts, PlayedJob

from millrace_registry.domain import Deployment, QueuePolicy, RequestKey, Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.schema import ENDPOINTS
from millrace_registry.strategies import Immediate
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.resource import Result, ServingTuning, State
from millrace_registry.tuning.service import MAXIMUM_ATTEMPTS
from millrace_registry.tuning.watch import watch
from millrace_runtime import names
from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock

VICTIM = Path(__file__).with_name("tuning_victim.py")


def serving(database: Database, folder: Path, clock: FakeClock) -> World:
    """A world in which a version of a model serves."""
    made = World(database, folder, clock)
    now = clock()
    at_once = Deployment("acme", names.new_id("deployment"), "demo", now, now, strategy=Immediate())
    made.catalogue.add_deployment(at_once, RequestKey("", ""))
    made.finish(1)
    made.look(5)
    return made


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield serving(database, tmp_path, clock)
    database.close()


@pytest.fixture
def parts(world: World, tmp_path: Path) -> Parts:
    return Parts(world, tmp_path, PlayedJob())


def result(tuning: ServingTuning) -> Result:
    assert tuning.state == State.SUCCEEDED, tuning.failure
    assert tuning.result is not None
    return tuning.result


def test_the_winner_is_written(parts: Parts) -> None:
    revision = parts.deployment().revision
    made = parts.done()
    assert (result(made).is_written, result(made).winner) == (True, 2)
    assert parts.deployment().serving == BEST
    assert parts.deployment().revision == revision + 1
    order = parts.job.orders[0]
    assert (order.model, order.vocabulary, order.present) == ("acme.demo", 500, Serving())
    assert order.limits.threads >= 1
    assert [trial.number for trial in made.trials] == [0, 1, 2, 3, 4]
    assert (made.progress.completed, made.progress.total) == (5, 5)
    assert not parts.work()


def test_a_queue_that_fits_is_told_and_written_when_asked_for(parts: Parts) -> None:
    policy = QueuePolicy(max_queue_size=5, default_timeout_seconds=0.5)  # 9/s, for half a second
    assert result(parts.done()).queue_policy == policy
    assert parts.deployment().serving.queue_policy == QueuePolicy()
    parts.done(replace(WISH, with_queue=True))
    assert parts.deployment().serving.queue_policy == policy


def test_a_dry_run_and_a_tie_change_nothing(parts: Parts) -> None:
    before = parts.deployment()
    assert not result(parts.done(replace(WISH, is_dry_run=True))).is_written
    parts.job.is_better = False
    assert not result(parts.done()).is_written
    assert parts.deployment() == before


def test_settings_that_were_changed_meanwhile_stay(parts: Parts, world: World) -> None:
    other = replace(parts.deployment(), serving=Serving(max_batch_size=3))
    parts.job.meanwhile = lambda: world.app.update_deployment(other, None)
    ended = result(parts.done())
    assert not ended.is_written
    assert "changed meanwhile" in ended.reason
    assert parts.deployment().serving == Serving(max_batch_size=3)


def test_what_else_was_changed_meanwhile_is_kept(parts: Parts, world: World) -> None:
    other = replace(parts.deployment(), targets=("TARGET_OPENVINO_FP32",))
    parts.job.meanwhile = lambda: world.app.update_deployment(other, None)
    assert result(parts.done()).is_written
    assert parts.deployment().serving == BEST
    assert parts.deployment().targets == ("TARGET_OPENVINO_FP32",)


def test_one_that_breaks_off_goes_on_from_what_was_measured(parts: Parts, world: World) -> None:
    parts.job.breaks_before = (3, lambda: None)
    made = parts.done()
    assert (made.state, len(made.trials)) == (State.RUNNING, 3)
    assert made.failure is not None
    assert "signal 9" in made.failure.message
    assert not parts.work()
    parts.job.breaks_before = (-1, lambda: None)
    world.clock.advance(60)
    assert parts.work()
    ended = parts.get(made)
    assert result(ended).is_written
    assert ended.failure is None
    assert [len(order.done) for order in parts.job.orders] == [0, 3]


def test_one_that_gets_nowhere_fails_and_says_why(parts: Parts, world: World) -> None:
    parts.job.breaks_before = (0, lambda: None)
    made = parts.create()
    for _ in range(MAXIMUM_ATTEMPTS):
        assert parts.work()
        world.clock.advance(600)
    ended = parts.get(made)
    assert ended.state == State.FAILED
    assert ended.failure is not None
    assert "signal 9" in ended.failure.message
    assert not parts.work()
    parts.job.breaks_before = (-1, lambda: None)
    assert result(parts.done()).is_written


def test_one_search_at_a_time_of_a_deployment(parts: Parts) -> None:
    made = parts.create(request="r")
    assert parts.create(request="r") == made
    with pytest.raises(AlreadyExists, match=made.id):
        parts.create()
    parts.app.cancel("acme", made.id)
    assert parts.create().id != made.id


def test_another_process_on_the_endpoint_is_waited_for(
    parts: Parts, world: World, tmp_path: Path
) -> None:
    made = parts.create()
    with ModelRepository(tmp_path / "triton", EngineSettings()).trials():
        assert parts.work()
        waiting = parts.get(made)
        assert waiting.state == State.QUEUED
        assert "another search" in waiting.progress.phase
    world.clock.advance(5)
    assert parts.work()
    assert result(parts.get(made)).is_written


def test_one_that_is_cancelled_changes_nothing(parts: Parts) -> None:
    before = parts.deployment()
    made = parts.create()
    parts.job.meanwhile = lambda: parts.app.cancel("acme", made.id)
    with pytest.raises(LeaseLost):
        parts.work()
    assert parts.get(made).state == State.CANCELLED
    assert parts.deployment() == before
    assert parts.app.cancel("acme", made.id)[0].state == State.CANCELLED
    assert not parts.work()


def test_one_whose_registry_stops_is_left_as_it_is(parts: Parts) -> None:
    made, stop = parts.create(), threading.Event()
    parts.job.breaks_before = (1, stop.set)
    assert parts.work(stop)
    left = parts.get(made)
    assert (left.state, left.failure, len(left.trials)) == (State.RUNNING, None, 1)


def test_one_that_was_begun_elsewhere_is_left_to_its_endpoint_while_that_is_heard_of(
    parts: Parts, world: World, tmp_path: Path
) -> None:
    elsewhere = Parts(world, tmp_path / "other", parts.job, owner="two", endpoint="other:1")
    parts.job.breaks_before = (3, lambda: None)
    made = parts.done()
    world.clock.advance(30)
    with world.database.transaction() as connection:
        connection.execute(insert(ENDPOINTS).values(id=ENDPOINT, update_time=world.clock()))
    assert not elsewhere.work()
    world.clock.advance(61)
    parts.job.breaks_before = (-1, lambda: None)
    assert elsewhere.work()
    assert [len(order.done) for order in parts.job.orders] == [0, 0]
    assert result(parts.get(made)).is_written


def test_a_model_that_does_not_serve_is_refused(parts: Parts, world: World) -> None:
    world.app.match_deployments("acme", "later", final=False)
    world.finish(1, "later")
    with pytest.raises(FailedPrecondition, match="serves"):
        parts.create()
    with pytest.raises(NotFound):
        parts.app.get("acme", "tuning-none")


def test_rows_are_the_same_on_either_database(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    parts = Parts(serving(database, tmp_path, clock), tmp_path, PlayedJob())
    wish = replace(WISH, traffic=((7, 5), (9, 3)), source="SOURCE_GIVEN")
    cancelled = parts.create(wish)
    with pytest.raises(AlreadyExists, match=cancelled.id):
        parts.create(wish)
    parts.app.cancel("acme", cancelled.id)
    parts.job.breaks_before = (2, lambda: None)
    made = parts.create(wish, request="r")
    assert parts.work()
    assert parts.create(wish, request="r").id == made.id
    clock.advance(60)
    parts.job.breaks_before = (-1, lambda: None)
    assert parts.work()
    ended = parts.get(made)
    assert result(ended).is_written
    assert (ended.wish, ended.trials[2].serving) == (wish, BEST)
    assert parts.deployment().serving == BEST
    page, token = parts.app.page("acme", "", 1, "")
    assert [each.id for each in page] == [made.id]
    rest, last = parts.app.page("acme", made.deployment, 1, token)
    assert ([each.id for each in rest], last) == ([cancelled.id], "")


def test_a_listener_is_told_each_look_once_and_the_end(parts: Parts) -> None:
    made = parts.create()
    told = list(watch(parts.app, "acme", made.id, parts.work))
    kinds = [news.WhichOneof("news") for news in told]
    assert kinds == ["phase", *["trial"] * 5, "result"]
    assert told[-1].result.deployment.serving.max_batch_size == BEST.max_batch_size
    assert [news.trial.number for news in told[1:-1]] == [0, 1, 2, 3, 4]
    left = parts.create()
    assert len(list(watch(parts.app, "acme", left.id, lambda: False))) == 1
    parts.app.cancel("acme", left.id)
    with pytest.raises(Aborted, match="cancelled"):
        list(watch(parts.app, "acme", left.id, parts.work))


def test_a_registry_that_is_killed_is_followed_by_one_that_goes_on(
    parts: Parts, tmp_path: Path
) -> None:
    made = parts.create()
    command = [sys.executable, str(VICTIM), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"measured\n"
        assert not parts.work()
        os.kill(victim.pid, signal.SIGKILL)
    measured = parts.get(made)
    assert (measured.state, len(measured.trials)) == (State.RUNNING, 2)
    assert parts.work()
    ended = parts.get(made)
    assert result(ended).is_written
    assert ended.trials[:2] == measured.trials
    assert [len(order.done) for order in parts.job.orders] == [2]
    assert parts.deployment().serving == BEST
