"""Golden prompts are asked of both versions, kept, and told as pairs."""

import math
from pathlib import Path

import pytest
import sqlalchemy
from golden_builders import PROMPTS, finish
from registry_builders import World

from millrace_registry.answer_counts import AnswerCounts
from millrace_registry.collector import Collector
from millrace_registry.domain import Rollout
from millrace_registry.evidence import Evidence
from millrace_registry.evidence_store import GoldenScore
from millrace_registry.health import Health
from millrace_registry.schema import GOLDEN_SCORES
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


def collector(world: World, seconds_a_question: float = 0.0) -> Collector:
    """A new one, as after a restart; each question takes a while."""

    def monotonic() -> float:
        world.clock.advance(seconds_a_question)
        return world.clock().timestamp()

    return Collector(world.control.evidence, world.triton, world.content, monotonic)


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


def test_a_look_asks_only_a_few(world: World, canary: Rollout) -> None:
    forget(world, canary)
    asking = collector(world, seconds_a_question=0.2)
    found = [len(ask(asking, world, canary).pairs) for _ in range(12)]
    assert found[0] < 2
    assert found == sorted(found)
    assert found[-1] == len(PROMPTS)


def test_who_takes_over_asks_what_is_missing(world: World, canary: Rollout) -> None:
    forget(world, canary)
    first = collector(world, seconds_a_question=0.2)
    for _ in range(5):
        ask(first, world, canary)
    known = len(world.control.evidence.scores(canary))
    world.triton.scored.clear()
    evidence = ask(collector(world), world, canary)
    assert len(world.triton.scored) == 2 * len(PROMPTS) - known
    assert len(evidence.pairs) == len(PROMPTS)


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
        other.evidence.keep_score(canary, GoldenScore(2, "golden/1", -1.0))


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
