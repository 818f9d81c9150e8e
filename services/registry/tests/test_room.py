"""An endpoint's memory is shared out: who waits, who makes room, and what users see of it."""

from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from registry_builders import FakeTriton, World

from millrace_registry.domain import HoldRule, Serving
from millrace_registry.memory import need_bytes
from millrace_registry.triton_config import EngineSettings
from millrace_runtime.database import Database
from millrace_runtime.errors import ResourceExhausted
from millrace_testkit.clock import FakeClock

NEED = need_bytes(100, EngineSettings(), Serving())  # of each of the builders' artifacts
RULE = HoldRule()


class CrowdedTriton(FakeTriton):
    """Remembers how many versions it ran at once."""

    most = 0

    def load(self, model: str) -> None:
        super().load(model)
        self.most = max(self.most, len(self.ready()))


def world_of(database: Database, folder: Path, clock: FakeClock, places: int) -> World:
    """With memory for so many versions."""
    triton = CrowdedTriton(folder / "triton")
    return World(database, folder, clock, triton=triton, budget_bytes=places * NEED)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"endpoint": "triton:8001"})


def test_the_held_version_that_was_asked_for_longest_ago_makes_room(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    world = world_of(database, tmp_path, clock, places=3)
    for number in (1, 2, 3, 4):
        world.serve(number)
    world.look(12)
    world.app.hold("acme", "demo", 1)
    world.clock.advance(1)
    world.app.hold("acme", "demo", 2)
    world.look(2)
    assert world.shares() == {1: 0.0, 2: 0.0, 4: 1.0}
    with pytest.raises(ResourceExhausted, match=r"1\.25 GiB of memory, and 3\.75 GiB of the"):
        world.app.hold("acme", "demo", 3)  # the others are in use
    world.clock.advance(RULE.busy.total_seconds())
    world.app.hold("acme", "demo", 3)
    world.look(1)
    assert world.shares() == {2: 0.0, 4: 1.0}  # 1 drains, and 3 waits for its memory
    assert ("acme.demo", 1) in world.triton.ready()
    world.look(16)
    assert world.shares() == {2: 0.0, 3: 0.0, 4: 1.0}
    assert world.triton.most == 3
    assert gauge("millrace_endpoint_memory_budget_bytes") == 3 * NEED
    assert gauge("millrace_endpoint_memory_planned_bytes") == 3 * NEED


def test_a_rollout_is_worth_more_than_what_is_held(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    world = world_of(database, tmp_path, clock, places=2)
    world.serve(1)
    world.serve(2)
    world.look(12)
    world.app.hold("acme", "demo", 1)
    world.look(2)
    assert world.shares() == {1: 0.0, 2: 1.0}
    world.finish(3)
    world.look(1)
    (waiting,) = world.catalogue.rollouts("acme", "demo", "", 1)
    assert waiting.reason.startswith("waits for memory: it needs 1.25 GiB of memory, which are")
    world.look(40)
    assert world.shares() == {3: 1.0}
    assert world.triton.most == 2


def test_a_rollout_that_does_not_fit_waits_and_says_why(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    world = world_of(database, tmp_path, clock, places=2)
    world.serve(1, "first")
    world.serve(1, "second")
    world.finish(2, "second")
    # Longer than a version may take to load: it is not held against this one.
    world.look(8, seconds=29)
    (waiting,) = world.catalogue.rollouts("acme", "second", "", 1)
    assert waiting.state == "PENDING"
    assert waiting.reason == (
        "waits for memory: it needs 1.25 GiB of memory, and 2.50 GiB of the endpoint's 2.50 GiB "
        "are for what serves or comes before it"
    )
    assert world.shares("first") == world.shares("second") == {1: 1.0}
    world.app.delete_model("acme", "first")
    world.look(40)
    assert world.shares("second") == {2: 1.0}


def test_what_serves_is_loaded_whatever_it_needs(
    database: Database, tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    World(database, tmp_path, clock).serve(1)
    world = world_of(database, tmp_path / "smaller", clock, places=0)
    world.clock.advance(11)  # the other registry's lease has ended
    controller = world.controller_with(World(database, tmp_path, clock).content)
    for _ in range(3):
        controller.look()
    assert world.shares() == {1: 1.0}
    assert caplog.text.count("more than the memory budget") == 1
    with pytest.raises(ResourceExhausted, match="MILLRACE_REGISTRY_MEMORY_BUDGET_BYTES"):
        world.finish(2)
        world.app.hold("acme", "demo", 2)


def test_an_endpoint_that_lags_behind_gets_no_requests_for_what_it_does_not_answer(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """Two registries on one database, each with a Triton of its own."""
    world = World(database, tmp_path, clock)
    other = World(database, tmp_path / "other", clock, endpoint="triton-2:8001")
    second = other.controller_with(world.content, "two")
    world.serve(1)
    assert endpoints(world) == {1: ("triton:8001",)}
    second.look()
    assert endpoints(world) == {1: ("triton-2:8001", "triton:8001")}
    other.triton.away = True
    world.finish(2)
    for _ in range(60):
        world.look()
        second.look()
    assert world.rollout_states() == ["SETTLED", "SETTLED"]
    assert endpoints(world) == {2: ("triton:8001",)}
    other.triton.away = False
    for _ in range(20):
        world.look()
        second.look()
    assert endpoints(world) == {2: ("triton-2:8001", "triton:8001")}
    clock.advance(timedelta(minutes=2).total_seconds())  # nobody sees to the other one any more
    world.look(2)
    assert endpoints(world) == {2: ("triton:8001",)}


def endpoints(world: World) -> dict[int, tuple[str, ...]]:
    (route,) = world.control.routes()[1]
    return {target.version: target.endpoints for target in route.targets}
