"""Checkpoints asked for by their step: versions that are kept loaded though they do not serve."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from registry_builders import World

from millrace_registry.domain import HoldRule, VersionState
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition, NotFound, ResourceExhausted
from millrace_testkit.clock import FakeClock

RULE = HoldRule()


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    """Version 2 serves, 1 has retired and is unloaded."""
    world = World(database, tmp_path, clock)
    world.serve(1)
    world.serve(2)
    world.look(12)
    assert world.triton.ready() == {("acme.demo", 2)}
    return world


def steps(world: World) -> dict[int, int]:
    (route,) = world.control.routes()[1]
    return dict(route.steps)


def loaded(world: World) -> set[int]:
    return {number for _, number in world.triton.ready()}


def test_what_is_asked_for_is_loaded_and_takes_no_traffic(world: World) -> None:
    expire_time = world.app.hold("acme", "demo", 1)
    assert expire_time == world.clock() + RULE.duration
    world.look(2)
    assert world.shares() == {1: 0.0, 2: 1.0}
    assert world.version(1).state == VersionState.RETIRED
    assert ("acme.demo", 1) in world.triton.asked


def test_one_that_never_served_can_be_asked_for(world: World) -> None:
    for number in (3, 4, 5):
        world.finish(number)
    world.look(30)
    assert world.version(4).state == VersionState.REGISTERED
    world.app.hold("acme", "demo", 4)
    world.look(2)
    assert world.shares() == {4: 0.0, 5: 1.0}


def test_it_leaves_the_routes_before_it_leaves_triton(world: World) -> None:
    world.app.hold("acme", "demo", 1)
    world.look(2)
    world.clock.advance(RULE.duration.total_seconds())
    world.look()
    assert world.shares() == {2: 1.0}
    assert loaded(world) == {1, 2}
    world.look(12)
    assert loaded(world) == {2}
    assert not (world.folder / "triton/acme.demo/1").exists()


def test_it_stays_while_it_is_asked_for(world: World) -> None:
    for _ in range(4):
        world.app.hold("acme", "demo", 1)
        world.look()
        world.clock.advance(RULE.duration.total_seconds() - 10)
        world.look()
        assert 1 in world.shares()


def test_there_is_a_most_and_what_is_in_use_makes_no_room(world: World) -> None:
    for number in range(3, 7):
        world.serve(number)
    for number in (1, 2, 3):
        world.app.hold("acme", "demo", number)
    with pytest.raises(ResourceExhausted, match="3 checkpoints of model 'demo'"):
        world.app.hold("acme", "demo", 4)
    world.clock.advance(RULE.busy.total_seconds())
    world.app.hold("acme", "demo", 1)  # of the others, 2 and 3, one is as old as the other
    world.clock.advance(1)
    world.app.hold("acme", "demo", 3)
    world.app.hold("acme", "demo", 4)
    world.look(2)
    assert world.shares() == {1: 0.0, 3: 0.0, 4: 0.0, 6: 1.0}


def test_every_step_names_its_newest_version(world: World) -> None:
    assert steps(world) == {1: 1, 2: 2}
    content = world.artifact("demo-other")
    again = dict(world.version(1).checkpoint)
    world.app.artifact_finished(
        "acme",
        compression="tenants/acme/compressions/other",
        target=world.version(1).target,
        artifact=content,
        checkpoint=again,
        measurements={},
        base_model="",
        traceparent="",
    )
    world.look()
    assert steps(world) == {1: 3, 2: 2}
    assert world.app.resolve("acme", "demo:ckpt-step-1").number == 3
    with pytest.raises(NotFound, match="no version of a checkpoint of step 7"):
        world.app.resolve("acme", "demo:ckpt-step-7")
    with pytest.raises(NotFound, match="no model"):
        world.app.resolve("acme", "nobody:ckpt-step-1")


def test_what_was_reversed_or_quarantined_is_not_to_be_had(world: World) -> None:
    world.app.hold("acme", "demo", 1)
    world.look(2)
    world.app.quarantine("acme", "demo", 1, "it saw what it should not have seen")
    world.finish(3)
    world.look(3)
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    world.app.reverse("acme", rollout.id, "it is rude")
    world.look(14)
    assert steps(world) == {2: 2}
    assert world.shares() == {2: 1.0}
    assert loaded(world) == {2}
    for number in (1, 3):
        with pytest.raises(FailedPrecondition, match=r"it is rude|should not have seen"):
            world.app.hold("acme", "demo", number)


def test_what_is_damaged_is_never_loaded(world: World) -> None:
    (world.content.working_path("artifacts/demo-1") / "weights.bin").write_text("x")
    world.app.hold("acme", "demo", 1)
    world.look(3)
    assert world.version(1).state == VersionState.QUARANTINED
    assert loaded(world) == {2}
    assert steps(world) == {2: 2}


def test_one_that_does_not_load_leaves_the_others_alone(world: World) -> None:
    world.triton.broken["acme.demo", 1] = "the weights are of another shape"
    world.app.hold("acme", "demo", 1)
    world.look(20)
    assert world.shares() == {2: 1.0}
    assert loaded(world) == {2}


def test_it_answers_by_its_step_also_when_nothing_serves(world: World) -> None:
    world.app.hold("acme", "demo", 1)
    world.look(2)
    world.triton.broken["acme.demo", 2] = "out of memory"
    world.triton.restart()
    world.look(2)
    assert world.shares() == {1: 0.0}


def test_a_held_version_may_be_rolled_out_like_any_other(world: World) -> None:
    world.finish(3)
    world.app.hold("acme", "demo", 3)
    world.look(20)
    assert world.shares() == {3: 1.0}
    assert world.rollout_states()[-1] == "SETTLED"


def test_a_deleted_model_holds_nothing(world: World) -> None:
    world.app.hold("acme", "demo", 1)
    world.look(2)
    world.app.delete_model("acme", "demo")
    world.look(4)
    assert world.triton.ready() == set()
    with pytest.raises(NotFound):
        world.app.hold("acme", "demo", 1)


def test_without_room_for_any_nothing_is_held(world: World) -> None:
    version = world.version(1)
    assert world.catalogue.hold(version, HoldRule(maximum=0)) is None


def test_holds_that_ended_long_ago_are_forgotten(world: World) -> None:
    world.app.hold("acme", "demo", 1)
    world.clock.advance(timedelta(days=1).total_seconds())
    expires: datetime | None = world.catalogue.hold(world.version(2), HoldRule(maximum=1))
    assert expires is not None
    world.look()
    assert world.held_versions() == {2}
