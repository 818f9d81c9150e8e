"""The controller, with a Triton that is played."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from registry_builders import World
from tritonclient.grpc import model_config_pb2 as pb

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import (
    LineageNode,
    QueuePolicy,
    Serving,
    VersionState,
)
from millrace_registry.rollout import EnterStep
from millrace_registry.strategies import Canary, Immediate, Stage
from millrace_registry.traffic import Seen, Traffic
from millrace_registry.transitions import RolloutChanged
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock


class FullContent(ContentStore):
    """A store whose cache has no room, until it has."""

    is_full = True

    def directory(self, uri: str, digest: str) -> Path:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().directory(uri, digest)


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


def test_a_step_is_in_the_routes_before_anything_is_loaded(world: World) -> None:
    """Loading another model takes seconds; who hears that a version settled may ask for it now."""
    world.serve(1)
    world.finish(2)
    world.look(3)
    seen: list[dict[int, float]] = []
    world.triton.on_index = lambda: seen.append(world.shares())
    while world.shares() != {2: 1.0}:
        seen.clear()
        world.look()
    assert seen == [{1: 0.75, 2: 0.25}, {2: 1.0}]


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
    assert "0 of 8 (0.0%) of its requests failed" in rollout.reason


def test_what_gateways_saw_fail_is_reversed(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    world.control.report_traffic("gateway-1", [("acme", "demo", 2, Traffic(20, 15))])
    world.look(4)
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


def test_what_triton_would_read_again_is_looked_at_too(world: World) -> None:
    """Told to load one version, Triton reads the others again whose files have changed."""
    world.serve(1)
    world.finish(2)
    (world.content.working_path("artifacts/demo-1") / "weights.bin").write_text("x")
    world.look(20)
    assert world.version(1).state == VersionState.QUARANTINED
    assert "weights.bin differs" in world.version(1).state_reason
    assert world.triton.ready() == {TWO}
    assert world.shares() == {2: 1.0}


def test_a_full_disk_is_waited_for_and_says_nothing_of_the_version(world: World) -> None:
    world.serve(1)
    world.finish(2)
    content = FullContent(str(world.folder / "data"), world.folder / "cache")
    world.controller = world.controller_with(content)
    world.look(4, seconds=100)
    waiting = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    assert waiting.state.value == "LOADING"
    assert waiting.reason.startswith("STORAGE_FULL: waiting for the disk")
    assert world.shares() == {1: 1.0}
    content.is_full = False
    world.look(20)
    assert world.shares() == {2: 1.0}
    assert world.rollout_states() == ["SETTLED", "SETTLED"]


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
        world.control.write_routes([], lambda answering: [])
    assert other.write_routes([], lambda answering: [])


def test_tuned_models_have_names_that_triton_takes(world: World) -> None:
    model = "ft:demo:acme:docs:k3x9ab"
    world.serve(1, model)
    (key,) = world.triton.ready()
    assert key[0].startswith("acme.ft.demo.acme.docs.k3x9ab.")
    assert ":" not in key[0]
    assert world.shares(model) == {1: 1.0}


def test_a_silent_canary_is_repaired_without_disturbing_the_serving_version(world: World) -> None:
    """Only the silent version is taken out: its neighbour's streams are not to be ended."""
    world.serve(1)
    world.finish(2)
    world.look(3)
    world.triton.silent.add(TWO)
    for _ in range(20):
        world.look()
        assert ONE in world.triton.ready()
        assert 1 in world.shares()
    assert world.rollout_states() == ["SETTLED", "REVERSED"]
    assert "does not answer" in world.version(2).state_reason


def test_a_version_retires_only_after_its_drain(world: World) -> None:
    world.serve(1)
    world.finish(2)
    while world.shares() != {2: 1.0}:
        world.look()
    world.look(8)  # 4 s of the 5
    assert world.triton.ready() == {ONE, TWO}
    world.look(4)
    assert world.triton.ready() == {TWO}


def test_a_user_who_ends_a_rollout_amid_a_look_is_not_overruled(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    (stale,) = world.control.desired(world.clock())[0].rollouts
    world.app.reverse("acme", stale.id, "it is rude")
    for write in (
        lambda: world.control.enter_step(stale, EnterStep(0, 0.5), Stage(), Seen()),
        lambda: world.control.settle(stale, Seen(), "fine"),
        lambda: world.control.reverse(stale, Seen(), "no"),
        lambda: world.control.count(stale, Seen(new=Traffic(1, 0))),
    ):
        with pytest.raises(RolloutChanged):
            write()
    assert world.catalogue.rollout("acme", stale.id).reason == "reversed by hand: it is rude"
    assert world.version(2).state == VersionState.RETIRED
    assert world.facts().count("rollout.reversed") == 1
    world.look()
    assert world.shares() == {1: 1.0}


def test_a_deployment_made_immediate_amid_a_canary_settles_it(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    (deployment,), _ = world.app.deployments("acme", 10, "")
    world.app.update_deployment(replace(deployment, strategy=Immediate()), None)
    world.look(2)
    assert world.shares() == {2: 1.0}


def test_a_deployment_that_is_to_be_run_otherwise_is_loaded_again(world: World) -> None:
    world.serve(1)
    (deployment,), _ = world.app.deployments("acme", 10, "")
    policy = QueuePolicy(max_queue_size=4)
    serving = Serving(instance_count=2, max_batch_size=8, queue_policy=policy)
    changed = world.app.update_deployment(replace(deployment, serving=serving), None)
    assert changed.serving == serving
    loads = world.triton.loads
    world.look(4)
    assert world.triton.loads == loads + 1
    text = (world.folder / "triton/acme.demo/config.pbtxt").read_text()
    config = text_format.Parse(text, pb.ModelConfig())
    assert config.instance_group[0].count == 2
    assert config.parameters["max_sequences"].string_value == "8"
    assert world.shares() == {1: 1.0}
    (route,) = world.control.routes()[1]
    assert route.queue_policy == policy


def test_a_quarantined_start_of_a_canary_leaves_nothing_behind(world: World) -> None:
    """The successor that stood in for the quarantined version retires like any other."""
    world.serve(1)
    world.serve(2)
    world.finish(3)
    world.look(3)
    world.app.quarantine("acme", "demo", 2, "it saw what it should not have seen")
    assert world.version(1).state == VersionState.SERVING
    world.look(40)
    assert world.shares() == {3: 1.0}
    assert world.version(1).state == VersionState.RETIRED
    assert world.triton.ready() == {("acme.demo", 3)}


def test_a_registry_that_was_away_goes_on_where_the_rollout_stood(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    world.clock.advance(3600)
    successor = world.controller_of("two")
    for _ in range(12):
        successor.look()
        world.clock.advance(0.5)
    assert world.rollout_states() == ["SETTLED", "SETTLED"]
    assert world.shares() == {2: 1.0}


def test_a_registry_that_was_stopped_amid_a_canary_does_not_hold_that_against_it(
    world: World,
) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    assert world.shares() == {1: 0.75, 2: 0.25}
    world.clock.advance(86_400)
    world.look(20)
    assert world.rollout_states() == ["SETTLED", "SETTLED"]


def test_a_rollout_that_nobody_looked_at_is_loaded_all_the_same(world: World) -> None:
    world.finish(1)
    world.look()
    assert world.rollout_states() == ["LOADING"]
    world.triton.restart()
    world.clock.advance(3600)
    successor = world.controller_of("two")
    for _ in range(4):
        successor.look()
        world.clock.advance(0.5)
    assert world.shares() == {1: 1.0}


def test_shares_follow_the_strategys_steps(world: World) -> None:
    steps = Canary(steps=(0.1, 0.5), bake_seconds=1, minimum_requests=2)
    world.serve(1)
    (deployment,), _ = world.app.deployments("acme", 10, "")
    world.app.update_deployment(replace(deployment, strategy=steps), None)
    world.finish(2)
    seen: list[float] = []
    for _ in range(20):
        world.look()
        share = world.shares().get(2, 0.0)
        if share not in seen:
            seen.append(share)
    assert seen == [0.0, 0.1, 0.5, 1.0]
    assert world.facts().count("rollout.advanced") == 2


def test_gateways_answers_alone_can_prove_a_canary(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    asked = world.triton.asked.count(TWO)
    world.control.report_traffic("gateway-1", [("acme", "demo", 2, Traffic(100, 1))])
    world.look(8)
    assert world.shares() == {2: 1.0}
    assert world.triton.asked.count(TWO) - asked <= 3  # checks of its health, and no more


def test_counters_of_ended_lives_are_dropped(world: World) -> None:
    world.serve(1)
    world.control.report_traffic("gateway-1", [("acme", "demo", 1, Traffic(5, 0))])
    world.clock.advance(86_400 * 2)
    world.control.report_traffic("gateway-2", [("acme", "demo", 1, Traffic(7, 1))])
    world.look()
    assert world.gateways_counted("demo") == {"gateway-2", "controller-one"}


def test_counters_stay_while_a_canary_is_judged_by_them(world: World) -> None:
    world.serve(1)
    world.control.report_traffic("gateway-1", [("acme", "demo", 1, Traffic(5, 0))])
    world.clock.advance(86_400 * 2)
    world.finish(2)
    world.look()
    assert "gateway-1" in world.gateways_counted("demo")


def test_settling_tells_how_long_it_took_from_the_checkpoint(world: World) -> None:
    checkpoint = "tenants/acme/runs/r/checkpoints/demo-1"
    world.app.learn([LineageNode(checkpoint, "checkpoint")], [], {checkpoint: world.clock()})
    world.clock.advance(100)
    world.finish(1)
    world.look(3)
    (settled,) = world.messages(events_pb2.RolloutSettled)
    assert settled.checkpoint == checkpoint
    assert 100 < settled.checkpoint_to_settled_seconds < 110


def test_models_of_two_tenants_are_served_apart(world: World) -> None:
    world.finish(1, tenant="acme")
    world.finish(1, tenant="globex")
    world.look(4)
    assert world.triton.ready() == {("acme.demo", 1), ("globex.demo", 1)}
    routes = world.control.routes()[1]
    assert [(route.tenant, route.triton_model) for route in routes] == [
        ("acme", "acme.demo"),
        ("globex", "globex.demo"),
    ]


def test_the_revision_rises_when_the_routes_change_and_only_then(world: World) -> None:
    world.serve(1)
    revision, _ = world.control.routes()
    world.look(5)
    assert world.control.routes()[0] == revision
    world.app.set_alias("acme", "demo", "stable", 1)
    world.look()
    after, (route,) = world.control.routes()
    assert after == revision + 1
    assert route.aliases == {"champion": 1, "stable": 1}
