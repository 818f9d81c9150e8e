"""Every strategy from the artifact to its end, with a Triton that is played."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from registry_builders import World

from millrace_registry import convert
from millrace_registry.domain import Rollout, RolloutState, Route, VersionState
from millrace_registry.rows import deployment_values
from millrace_registry.strategies import (
    BlueGreen,
    Canary,
    Immediate,
    Shadow,
    Split,
    SplitEnd,
    Strategy,
)
from millrace_registry.strategy_convert import strategy_from_proto, strategy_to_proto
from millrace_registry.traffic import Comparison, Traffic
from millrace_registry.traffic_store import Compared
from millrace_registry.transitions import RolloutChanged
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition, InvalidArgument
from millrace_testkit.clock import FakeClock

ONE, TWO = ("acme.demo", 1), ("acme.demo", 2)
SHADOW = Shadow(share=0.5, bake_seconds=5, minimum_requests=4)
THEN_CANARY = replace(SHADOW, then_canary=Canary(steps=(0.2,), bake_seconds=1, minimum_requests=2))
BLUE_GREEN = BlueGreen(bake_seconds=2, minimum_requests=3, keep_seconds=20)
SPLIT = Split(share=0.3, duration_seconds=30, minimum_requests=5)
STRATEGIES = (Immediate(), Canary(), SHADOW, THEN_CANARY, BLUE_GREEN, SPLIT)


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    made = World(database, tmp_path, clock)
    made.serve(1)
    return made


def begin(world: World, strategy: Strategy) -> None:
    """A second version is rolled out by ``strategy``, as far as its first step."""
    (deployment,) = world.app.match_deployments("acme", "demo", final=True)
    world.app.update_deployment(replace(deployment, strategy=strategy), None)
    world.finish(2)
    world.look(4)


def rollout(world: World) -> Rollout:
    return world.catalogue.rollouts("acme", "demo", "", 1)[0]


def fails(world: World) -> None:
    """Half of what the new version is asked, and nothing of what the old one is."""
    seen = [("acme", "demo", 2, Traffic(100, 50)), ("acme", "demo", 1, Traffic(200))]
    world.control.report_traffic("gateway-1", seen)


def route(world: World) -> Route:
    (found,) = world.control.routes()[1]
    return found


def mirrored(world: World) -> dict[int, float]:
    return {t.version: t.mirror_share for t in route(world).targets if t.mirror_share}


def until(world: World, *states: RolloutState) -> Rollout:
    for _ in range(400):
        if rollout(world).state in states:
            return rollout(world)
        world.look()
    raise AssertionError(f"it is {rollout(world)}")


def test_a_shadow_gets_copies_and_no_traffic_then_all_of_it(world: World) -> None:
    begin(world, SHADOW)
    assert rollout(world).state == RolloutState.SHADOW
    assert world.shares() == {1: 1.0, 2: 0.0}
    assert mirrored(world) == {2: 0.5}
    settled = until(world, RolloutState.SETTLED)
    assert settled.mirror_share == 0
    world.look()
    assert world.shares() == {2: 1.0}
    assert mirrored(world) == {}


def test_a_shadow_may_be_followed_by_a_canary(world: World) -> None:
    begin(world, THEN_CANARY)
    until(world, RolloutState.CANARY)
    world.look()
    assert world.shares() == {1: 0.8, 2: 0.2}
    assert mirrored(world) == {}
    until(world, RolloutState.SETTLED)


def test_a_shadow_that_fails_is_reversed_and_no_client_saw_it(world: World) -> None:
    begin(world, SHADOW)
    fails(world)
    world.look()
    found = rollout(world)
    assert found.state == RolloutState.REVERSED
    assert "requests failed" in found.reason
    world.look()
    assert mirrored(world) == {}
    assert world.shares() == {1: 1.0}


def test_what_was_compared_since_the_step_began_is_shown(world: World) -> None:
    def report(gateway: str, *figures: float) -> None:
        seen = Compared("acme", "demo", 1, 2, Comparison(*figures))
        world.control.report_traffic(gateway, [], [seen])

    report("gateway-0", 5, 1.0, 1, 0, 50, 50)  # of a rollout before this one
    begin(world, SHADOW)
    report("gateway-1", 4, 3.0, 0, 0, 40, 38)
    report("gateway-2", 2, 2.0, 1, 1, 20, 30)
    report("gateway-2", 2, 2.0, 1, 1, 20, 30)  # once more, which changes nothing
    world.look()
    assert rollout(world).seen.shadow == Comparison(6, 5.0, 1, 1, 60, 68)
    shown = convert.rollout_to_proto(rollout(world)).shadow
    assert (shown.compared, shown.agreement) == (6, pytest.approx(5 / 6))


def test_blue_green_switches_at_once_and_keeps_the_old_version_loaded(world: World) -> None:
    begin(world, BLUE_GREEN)
    assert rollout(world).state == RolloutState.STANDBY
    assert world.shares() == {1: 1.0, 2: 0.0}
    until(world, RolloutState.SWITCHED)
    world.look()
    assert world.shares() == {1: 0.0, 2: 1.0}
    world.look(10)
    assert {ONE, TWO} <= world.triton.ready()
    assert world.shares() == {1: 0.0, 2: 1.0}
    until(world, RolloutState.SETTLED)
    world.look(20)
    assert world.shares() == {2: 1.0}
    assert world.triton.ready() == {TWO}


def test_the_way_back_from_blue_green_loads_nothing(world: World) -> None:
    begin(world, BLUE_GREEN)
    until(world, RolloutState.SWITCHED)
    loads = world.triton.loads
    world.app.reverse("acme", rollout(world).id, "the users complain")
    world.look()
    assert world.shares() == {1: 1.0}
    assert world.triton.loads == loads
    assert world.version(2).state == VersionState.RETIRED


def test_blue_green_that_fails_after_the_switch_goes_back_by_itself(world: World) -> None:
    begin(world, BLUE_GREEN)
    until(world, RolloutState.SWITCHED)
    fails(world)
    world.look()
    assert rollout(world).state == RolloutState.REVERSED
    world.look()
    assert world.shares() == {1: 1.0}


def test_blue_green_never_switches_to_a_version_that_does_not_answer(world: World) -> None:
    begin(world, BLUE_GREEN)
    world.triton.silent.add(TWO)
    world.look(3, seconds=5)
    until(world, RolloutState.REVERSED)
    world.look()
    assert world.shares() == {1: 1.0}


def test_a_split_tells_gateways_to_keep_users_on_their_side(world: World) -> None:
    begin(world, SPLIT)
    found = rollout(world)
    assert found.state == RolloutState.SPLIT
    assert world.shares() == {1: 0.7, 2: 0.3}
    assert route(world).split == found.id
    until(world, RolloutState.SETTLED, RolloutState.REVERSED)
    world.look()
    assert route(world).split == ""


@pytest.mark.parametrize(
    ("on_end", "new", "old", "state"),
    [
        (SplitEnd.PROMOTE_BETTER, Traffic(40, 0), Traffic(40, 4), RolloutState.SETTLED),
        (SplitEnd.PROMOTE_BETTER, Traffic(40, 1), Traffic(40, 0), RolloutState.REVERSED),
        (SplitEnd.PROMOTE_BETTER, Traffic(40), Traffic(40), RolloutState.REVERSED),
        (
            SplitEnd.PROMOTE_BETTER,
            Traffic(40, 0, 400, 40, 4.0),
            Traffic(40, 0, 400, 40, 8.0),
            RolloutState.SETTLED,
        ),
        (SplitEnd.PROMOTE_UNLESS_WORSE, Traffic(40, 1), Traffic(40), RolloutState.SETTLED),
        (SplitEnd.KEEP_OLD, Traffic(40), Traffic(40, 4), RolloutState.REVERSED),
    ],
)
def test_a_split_ends_as_it_says_with_the_figures(
    world: World, on_end: SplitEnd, new: Traffic, old: Traffic, state: RolloutState
) -> None:
    begin(world, replace(SPLIT, on_end=on_end))
    world.control.report_traffic("gateway-1", [("acme", "demo", 2, new), ("acme", "demo", 1, old)])
    world.look(4)
    assert rollout(world).state == RolloutState.SPLIT
    ended = until(world, RolloutState.SETTLED, RolloutState.REVERSED)
    assert ended.state == state
    assert "requests failed" in ended.reason
    assert ended.seen.new.requests >= 40
    shown = convert.rollout_to_proto(ended)
    assert shown.old_side.requests == ended.seen.old.requests
    assert shown.new_side.mean_first_token_seconds == new.mean_first_token_seconds


@pytest.mark.parametrize("strategy", [THEN_CANARY, BLUE_GREEN, SPLIT, Canary()])
def test_a_pause_keeps_the_share_until_it_is_resumed(world: World, strategy: Strategy) -> None:
    begin(world, strategy)
    before = (rollout(world).state, world.shares(), mirrored(world))
    world.app.pause("acme", rollout(world).id, paused=True)
    world.look(30, seconds=5)
    assert rollout(world).paused
    assert (rollout(world).state, world.shares(), mirrored(world)) == before
    world.app.pause("acme", rollout(world).id, paused=False)
    until(world, RolloutState.SETTLED, RolloutState.REVERSED)
    kinds = [kind for kind in world.facts() if kind in ("rollout.paused", "rollout.resumed")]
    assert kinds == ["rollout.paused", "rollout.resumed"]


def test_a_paused_rollout_that_fails_is_reversed(world: World) -> None:
    begin(world, Canary(steps=(0.5,), bake_seconds=60))
    world.app.pause("acme", rollout(world).id, paused=True)
    fails(world)
    world.look()
    assert rollout(world).state == RolloutState.REVERSED
    assert not rollout(world).paused


def test_a_pause_that_comes_while_the_controller_looks_is_not_written_over(world: World) -> None:
    begin(world, Canary(steps=(0.5,), bake_seconds=60))
    seen_before = rollout(world)
    world.app.pause("acme", seen_before.id, paused=True)
    with pytest.raises(RolloutChanged):
        world.control.explain(seen_before, "waits")
    assert rollout(world).paused


@pytest.mark.parametrize("strategy", [SHADOW, BLUE_GREEN, SPLIT, Canary()])
def test_promoting_settles_whatever_the_strategy(world: World, strategy: Strategy) -> None:
    begin(world, strategy)
    assert world.app.promote("acme", rollout(world).id).state == RolloutState.SETTLED
    world.look(2)
    assert world.shares() == {2: 1.0}


def test_promoting_after_the_switch_lets_the_old_version_go(world: World) -> None:
    begin(world, BLUE_GREEN)
    until(world, RolloutState.SWITCHED)
    world.app.promote("acme", rollout(world).id)
    world.look(20)
    assert world.triton.ready() == {TWO}


def test_one_that_was_paused_before_its_first_step_is_promoted_once_it_has_answered(
    world: World,
) -> None:
    world.finish(2)
    waiting = rollout(world)
    world.look()  # told to load, and not looked at since
    world.app.pause("acme", waiting.id, paused=True)
    if rollout(world).ready_time is None:
        with pytest.raises(FailedPrecondition):
            world.app.promote("acme", waiting.id)
    world.look(4)
    assert rollout(world).state == RolloutState.LOADING
    assert world.shares() == {1: 1.0}
    assert world.app.promote("acme", waiting.id).state == RolloutState.SETTLED


def test_a_deployment_that_is_changed_begins_again_by_its_new_strategy(world: World) -> None:
    begin(world, SHADOW)
    (deployment,) = world.app.match_deployments("acme", "demo", final=True)
    world.app.update_deployment(replace(deployment, strategy=BLUE_GREEN), None)
    world.look(2)
    assert rollout(world).state == RolloutState.STANDBY
    assert mirrored(world) == {}


def test_when_the_old_version_is_quarantined_the_new_one_takes_its_place(world: World) -> None:
    begin(world, SHADOW)
    world.app.quarantine("acme", "demo", 1, "it must not be used")
    world.look(3)
    assert rollout(world).state == RolloutState.SETTLED
    assert world.shares() == {2: 1.0}


def test_what_has_ended_can_be_neither_paused_nor_resumed(world: World) -> None:
    with pytest.raises(FailedPrecondition, match="SETTLED and cannot be paused"):
        world.app.pause("acme", rollout(world).id, paused=True)


def test_comparisons_of_ended_lives_are_dropped(world: World, clock: FakeClock) -> None:
    seen = Compared("acme", "demo", 1, 2, Comparison(5, 1.0))
    world.control.report_traffic("gateway-0", [], [seen])
    clock.advance(timedelta(days=2).total_seconds())
    world.look()
    world.finish(2)
    assert world.control.comparison(replace(rollout(world), from_version=1)) == Comparison()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_are_kept_and_told_as_they_were(world: World, strategy: Strategy) -> None:
    (deployment,) = world.app.match_deployments("acme", "demo", final=True)
    world.app.update_deployment(replace(deployment, strategy=strategy), None)
    (kept,) = world.app.match_deployments("acme", "demo", final=True)
    assert kept.strategy == strategy
    assert deployment_values(kept) == deployment_values(
        replace(deployment, strategy=strategy, revision=kept.revision, update_time=kept.update_time)
    )
    assert strategy_from_proto(strategy_to_proto(strategy)) == strategy


def test_the_steps_of_a_canary_after_a_shadow_rise(world: World) -> None:
    (deployment,) = world.app.match_deployments("acme", "demo", final=True)
    falling = replace(SHADOW, then_canary=Canary(steps=(0.5, 0.2)))
    with pytest.raises(InvalidArgument, match="larger than the one before"):
        world.app.update_deployment(replace(deployment, strategy=falling), None)
