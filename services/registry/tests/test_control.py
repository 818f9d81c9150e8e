"""The controller, with a Triton that is played."""

from pathlib import Path

import pytest
from registry_builders import World

from millrace_registry.domain import Traffic, VersionState
from millrace_runtime.database import Database
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock

ONE, TWO = ("acme.demo", 1), ("acme.demo", 2)


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


def test_the_first_version_serves_once_it_has_answered(world: World) -> None:
    world.finish(1)
    world.look()
    assert world.shares() == {}
    world.look(3)
    assert world.shares() == {1: 1.0}
    assert world.version(1).state == VersionState.SERVING
    assert world.facts() == ["version.registered", "rollout.started", "rollout.settled"]
    assert world.app.model("acme", "demo").aliases == {"champion": 1}


def test_the_next_one_has_a_canary_and_then_all_the_traffic(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    assert world.shares() == {1: 0.75, 2: 0.25}
    world.look(12)
    assert world.shares() == {2: 1.0}
    assert world.version(1).state == VersionState.RETIRED
    assert world.facts()[3:] == [
        "version.registered",
        "rollout.started",
        "rollout.advanced",
        "rollout.settled",
    ]


def test_the_old_one_is_drained_unloaded_and_removed(world: World) -> None:
    world.serve(1)
    world.serve(2)
    world.look(20)
    assert world.triton.ready() == {TWO}
    assert not (world.folder / "triton/acme.demo/1").exists()
    assert (world.folder / "triton/acme.demo/2").exists()


def test_without_traffic_it_asks_its_own_questions(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(12)
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    assert rollout.requests >= 8
    assert rollout.failures == 0
    assert "8 of 8 requests answered" in rollout.reason


def test_what_gateways_saw_fail_is_reversed(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    world.control.report_traffic("gateway-1", [("acme", "demo", 2, Traffic(20, 10))])
    world.look(2)
    assert world.shares() == {1: 1.0}
    assert world.rollout_states() == ["SETTLED", "REVERSED"]
    assert "reversed: " in world.version(2).state_reason
    world.look(20)
    assert world.triton.ready() == {ONE}


def test_a_version_that_does_not_load_is_reversed_and_the_old_one_goes_on(world: World) -> None:
    world.serve(1)
    world.triton.broken[TWO] = "the weights are of another shape"
    world.finish(2)
    world.look(4)
    assert world.shares() == {1: 1.0}
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    assert "the weights are of another shape" in rollout.reason
    world.look(5)
    assert world.triton.ready() == {ONE}


def test_a_triton_that_restarted_empty_is_put_right(world: World) -> None:
    world.serve(1)
    world.triton.restart()
    world.look(2)
    assert world.triton.ready() == {ONE}
    assert world.shares() == {1: 1.0}


def test_the_routes_stand_while_triton_is_away(world: World) -> None:
    world.serve(1)
    world.triton.away = True
    world.look(3)
    assert world.shares() == {1: 1.0}
    world.triton.away = False
    world.triton.restart()
    world.look(3)
    assert world.shares() == {1: 1.0}


def test_an_engine_that_fell_silent_is_repaired(world: World) -> None:
    world.serve(1)
    world.triton.silent.add(ONE)
    world.look(60)
    assert world.triton.silent == set()
    assert world.shares() == {1: 1.0}


def test_a_damaged_artifact_is_never_served(world: World) -> None:
    world.serve(1)
    world.finish(2)
    (world.content.working_path("artifacts/demo-2") / "weights.bin").write_text("x")
    world.look(6)
    assert world.version(2).state == VersionState.QUARANTINED
    assert world.shares() == {1: 1.0}
    assert TWO not in world.triton.ready()
    assert "version.quarantined" in world.facts()
    assert world.rollout_states() == ["SETTLED", "REVERSED"]


def test_a_newer_version_supersedes_one_that_waits(world: World) -> None:
    world.serve(1)
    for number in (2, 3, 4):
        world.finish(number)
    world.look(30)
    assert world.rollout_states() == ["SETTLED", "SUPERSEDED", "SUPERSEDED", "SETTLED"]
    assert world.shares() == {4: 1.0}


def test_a_quarantined_champion_gives_way_to_the_one_before(world: World) -> None:
    world.serve(1)
    world.serve(2)
    world.app.quarantine("acme", "demo", 2, "it saw what it should not have seen")
    world.look(4)
    assert world.shares() == {1: 1.0}
    assert TWO not in world.triton.ready()


def test_a_deleted_model_is_unloaded_and_forgotten(world: World) -> None:
    world.serve(1)
    world.app.delete_model("acme", "demo")
    world.look(4)
    assert world.shares() == {}
    assert world.triton.ready() == set()
    assert not (world.folder / "triton/acme.demo").exists()


def test_promoting_by_hand_settles_a_canary(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    world.app.promote("acme", rollout.id)
    world.look()
    assert world.shares() == {2: 1.0}


def test_of_two_registries_one_controls(world: World) -> None:
    other = world.control_of("two")
    assert world.control.hold()
    assert not other.hold()
    world.clock.advance(11)
    assert other.hold()
    assert not world.control.hold()
    with pytest.raises(LeaseLost):
        world.control.write_routes([])
    assert other.write_routes([])


def test_tuned_models_have_names_that_triton_takes(world: World) -> None:
    model = "ft:demo:acme:docs:k3x9ab"
    world.serve(1, model)
    (key,) = world.triton.ready()
    assert key[0].startswith("acme.ft.demo.acme.docs.k3x9ab.")
    assert ":" not in key[0]
    assert world.shares(model) == {1: 1.0}
