"""Golden prompts are asked of both versions, kept, and told as pairs."""

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy
from golden_builders import PROMPTS, finish
from registry_builders import World

from millrace_registry.answer_counts import AnswerCounts
from millrace_registry.collector import Collector
from millrace_registry.domain import Rollout, RolloutState
from millrace_registry.evidence import Evidence
from millrace_registry.evidence_store import GoldenScore
from millrace_registry.health import Health
from millrace_registry.schema import GOLDEN_SCORES
from millrace_registry.scoring import LANES, AtOnce
from millrace_registry.strategies import BlueGreen
from millrace_registry.traffic import Seen
from millrace_runtime.database import Database
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock

NAME = "acme.demo"
ONE, TWO = (NAME, 1), (NAME, 2)
WELL = {ONE: Health(answered_at=1.0), TWO: Health(answered_at=1.0)}


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


@pytest.fixture
def canary(world: World) -> Rollout:
    """A rollout to a second version, in its canary."""
    finish(world, 1)
    world.look(20)
    finish(world, 2)
    world.look(3)
    found = current(world)
    assert found.state.is_judged
    return found


def current(world: World) -> Rollout:
    return world.catalogue.rollouts("acme", "demo", "", 1)[0]


class Held(Executor):
    """Runs what was submitted when told to."""

    def __init__(self) -> None:
        self.tasks: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.append((future, partial(fn, *args, **kwargs)))
        return future

    def run(self) -> None:
        for future, task in self.tasks:
            future.set_result(task())
        self.tasks.clear()


def collector(world: World, executor: Executor | None = None) -> Collector:
    """A new one, as after a restart."""
    return Collector(world.control.evidence, world.triton, world.content, executor or AtOnce())


def forget(world: World, canary: Rollout) -> None:
    """Begin without the scores that the controller has kept."""
    with world.database.transaction() as connection:
        connection.execute(sqlalchemy.delete(GOLDEN_SCORES))


def ask(asking: Collector, world: World, canary: Rollout) -> Evidence:
    asking.ask(canary, NAME, [world.version(1), world.version(2)], WELL)
    return asking.evidence(canary, Seen())


def test_both_versions_score_the_prompts_of_the_new_one(world: World, canary: Rollout) -> None:
    forget(world, canary)
    world.triton.shifts[TWO] = 0.5
    evidence = ask(collector(world), world, canary)
    assert [pair.prompt for pair in evidence.pairs] == [prompt.name for prompt in PROMPTS]
    assert {pair.difference for pair in evidence.pairs} == {-0.5}
    assert evidence.pairs_expected == len(PROMPTS)


def test_a_look_does_not_wait_for_answers(world: World, canary: Rollout) -> None:
    """What is on its way is not asked again; the first look after the answers keeps them."""
    forget(world, canary)
    held = Held()
    asking = collector(world, held)
    assert [len(ask(asking, world, canary).pairs) for _ in range(3)] == [0, 0, 0]
    assert len(held.tasks) == 2 * LANES
    held.run()
    assert world.control.evidence.scores(canary) == []
    assert len(ask(asking, world, canary).pairs) == len(PROMPTS)
    assert len(world.control.evidence.scores(canary)) == 2 * len(PROMPTS)
    assert held.tasks == []


def test_answers_of_who_lost_the_lease_are_not_kept(world: World, canary: Rollout) -> None:
    forget(world, canary)
    held = Held()
    asking = collector(world, held)
    ask(asking, world, canary)
    held.run()
    world.clock.advance(60)
    assert world.control_of("two").hold()
    with pytest.raises(LeaseLost):
        ask(asking, world, canary)
    assert world.control.evidence.scores(canary) == []


def test_who_takes_over_asks_what_is_missing(world: World, canary: Rollout) -> None:
    with world.database.transaction() as connection:
        some = GOLDEN_SCORES.c.prompt.in_([prompt.name for prompt in PROMPTS[:5]])
        connection.execute(sqlalchemy.delete(GOLDEN_SCORES).where(some))
    world.triton.scored.clear()
    evidence = ask(collector(world), world, canary)
    assert len(world.triton.scored) == 2 * 5
    assert len(evidence.pairs) == len(PROMPTS)


def test_how_many_pairs_there_will_be_is_unknown_until_they_are_read(
    world: World, canary: Rollout
) -> None:
    asking = collector(world)
    assert asking.evidence(canary, Seen()).pairs_expected is None
    assert ask(asking, world, canary).pairs_expected == len(PROMPTS)
    asking.tidy(world.clock())
    assert asking.evidence(canary, Seen()).pairs_expected is None


def test_a_disk_that_fails_is_no_artifact_without_prompts(
    world: World, canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = collector(world)
    with monkeypatch.context() as patched:
        patched.setattr(world.content, "directory", Mock(side_effect=OSError("it hangs")))
        assert ask(asking, world, canary).pairs_expected is None
    assert ask(asking, world, canary).pairs_expected == len(PROMPTS)


def test_after_the_stop_nothing_is_asked(world: World, canary: Rollout) -> None:
    forget(world, canary)
    world.triton.scored.clear()
    asking = collector(world)
    asking.stop()
    ask(asking, world, canary)
    assert world.triton.scored == []


def test_an_engine_that_does_not_score_is_asked_one_question_a_look(
    world: World, canary: Rollout
) -> None:
    forget(world, canary)
    world.triton.unscored.add(TWO)
    held = Held()
    asking = collector(world, held)
    ask(asking, world, canary)
    held.run()
    ask(asking, world, canary)
    assert len(held.tasks) == 1
    held.run()
    world.triton.unscored.clear()
    ask(asking, world, canary)
    held.run()
    assert len(ask(asking, world, canary).pairs) == len(PROMPTS)


def test_questions_that_fail_are_counted_once_a_round(world: World, canary: Rollout) -> None:
    forget(world, canary)
    asking = collector(world)
    world.triton.unscored.add(TWO)
    counted = [ask(asking, world, canary).asked_new for _ in range(2)]
    assert [(each.requests, each.failures) for each in counted] == [(1, 1), (2, 2)]
    world.triton.unscored.clear()
    evidence = ask(asking, world, canary)
    assert (evidence.asked_new.requests, evidence.asked_new.failures) == (2 + len(PROMPTS), 2)
    assert (evidence.asked_old.requests, evidence.asked_old.failures) == (len(PROMPTS), 0)


def test_what_could_not_be_asked_is_as_not_answered(
    world: World, canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(world, canary)
    monkeypatch.setattr(world.triton, "score", Mock(side_effect=KeyError("logprob")))
    asking = collector(world)
    for _ in range(3 * len(PROMPTS)):
        evidence = ask(asking, world, canary)
    assert [pair.difference for pair in evidence.pairs] == [0.0] * len(PROMPTS)


def test_what_is_worse_by_its_prompts_gets_no_traffic(world: World) -> None:
    finish(world, 1)
    world.look(20)
    prompts = [replace(p, name=f"golden/{n}") for n, p in enumerate(2 * PROMPTS)]
    finish(world, 2, prompts)
    world.triton.shifts[TWO] = 0.3
    for _ in range(4):
        world.look()
        assert world.shares() == {1: 1.0}
    assert current(world).state == RolloutState.REVERSED
    assert "golden scores differ by -0.3" in current(world).reason


def test_a_version_without_prompts_goes_without_and_says_so(world: World) -> None:
    finish(world, 1)
    world.look(20)
    finish(world, 2, [])
    world.look(60)
    assert current(world).state == RolloutState.SETTLED
    assert "no golden prompts" in current(world).reason


def test_what_is_not_scored_thrice_is_no_number(world: World, canary: Rollout) -> None:
    forget(world, canary)
    world.triton.unscored.add(TWO)
    asking = collector(world)
    for _ in range(3 * len(PROMPTS)):
        evidence = ask(asking, world, canary)
    assert all(math.isnan(pair.new) for pair in evidence.pairs)
    assert [pair.difference for pair in evidence.pairs] == [-math.inf] * len(PROMPTS)


def test_answers_that_are_cut_short_all_over_are_no_scores(world: World, canary: Rollout) -> None:
    forget(world, canary)
    world.triton.answer_tokens[TWO] = 1
    evidence = ask(collector(world), world, canary)
    assert sum(pair.difference == -math.inf for pair in evidence.pairs) == 6
    assert sum(pair.difference == 0 for pair in evidence.pairs) == 2


def test_a_version_that_does_not_answer_is_not_asked(world: World, canary: Rollout) -> None:
    world.triton.scored.clear()
    ill = {**WELL, TWO: Health(answered_at=1.0, failed_checks=1)}
    asking = collector(world)
    asking.ask(canary, NAME, [world.version(1), world.version(2)], ill)
    asking.ask(canary, NAME, [world.version(2)], WELL)
    assert world.triton.scored == []


def test_a_score_is_written_by_the_leases_holder_alone(world: World, canary: Rollout) -> None:
    other = world.control_of("two")
    with pytest.raises(LeaseLost):
        other.evidence.keep_scores(canary, [GoldenScore(2, "golden/1", -1.0)])


def test_scores_of_rollouts_that_ended_are_tidied(world: World, canary: Rollout) -> None:
    assert world.control.evidence.scores(canary)
    world.control.evidence.forget(world.clock())
    assert world.control.evidence.scores(canary)
    world.app.reverse("acme", canary.id, "")
    world.control.hold()
    world.control.evidence.forget(world.clock())
    assert world.control.evidence.scores(canary) == []


def test_counts_are_of_the_step_and_of_all_gateways(world: World, canary: Rollout) -> None:
    key = ("acme", "demo", 2)
    store = world.control.evidence
    store.report("gateway-1", [(key, AnswerCounts(10, 1, 1, {100: 2}, {50: 2}))])
    asking = collector(world)
    entered = asking.entering(canary)
    store.report("gateway-1", [(key, AnswerCounts(15, 1, 2, {100: 3}, {50: 3}))])
    store.report("gateway-1", [(key, AnswerCounts(15, 1, 2, {100: 3}, {50: 3}))])
    store.report("gateway-2", [(key, AnswerCounts(4, 1, 0, {101: 1}, {}))])
    found = asking.evidence(entered, Seen())
    assert (found.new.tokens, found.new.stops, found.new.lengths) == (9, 1, 1)
    assert found.new.first_token.counts[100:102] == (1, 1)
    assert found.new.token.total == 1
    assert found.old.tokens == 0


def test_users_are_shown_the_figures(world: World, canary: Rollout) -> None:
    world.look(2)
    shown = current(world).evidence
    assert shown["pairs"] == shown["pairs_expected"] == len(PROMPTS)
    assert shown["mean_score_difference"] == 0


def test_another_template_than_the_artifacts_is_a_mismatch(world: World, canary: Rollout) -> None:
    asking = collector(world)
    new = world.version(2)
    assert new.interface is not None
    served = {**vars(new.interface), "chat_template": "{{ broken }}"}
    changed = type(new)(**{**vars(new), "interface": type(new.interface)(**served)})
    asking.ask(canary, NAME, [world.version(1), changed], WELL)
    assert "chat template" in asking.mismatch(canary, changed)


def test_blue_green_asks_too(world: World) -> None:
    finish(world, 1)
    world.look(20)
    found = world.app.deployments("acme", 1, "")[0][0]
    world.app.update_deployment(type(found)(**{**vars(found), "strategy": BlueGreen()}), None)
    finish(world, 2)
    world.look(4)
    assert current(world).evidence["pairs"] == len(PROMPTS)
