"""Several registries on one Triton: what one does that has lost its lease amid a look."""

import shutil
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from registry_builders import FakeTriton, World
from sqlalchemy import select

from millrace_registry.control import Controller
from millrace_registry.control_loop import ControlLoop
from millrace_registry.control_store import ControlStore
from millrace_registry.events import FactRecorder
from millrace_registry.schema import CONTROLLERS, OUTBOX
from millrace_registry.triton import LoadFailed
from millrace_runtime.database import Database
from millrace_runtime.leases import LeaseLost
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock
from millrace_testkit.servers import wait_until


class SlowTriton(FakeTriton):
    """Something happens while it loads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meanwhile: Callable[[], None] | None = None

    def load(self, model: str) -> None:
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        super().load(model)


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock, triton=SlowTriton(tmp_path / "triton"))


def test_a_registry_that_was_stopped_does_not_undo_what_its_successor_did(world: World) -> None:
    world.serve(1, "second")
    world.finish(1, "first")

    def stopped_past_the_lease() -> None:
        """The other registry takes over, and brings a new version of the second model in."""
        other = world.controller_of("two")
        world.clock.advance(11)
        world.finish(2, "second")
        for _ in range(3):
            other.look()
            world.clock.advance(0.5)
        assert ("acme.second", 2) in world.triton.ready()

    world.triton.meanwhile = stopped_past_the_lease
    with pytest.raises(LeaseLost):
        world.controller.look()
    assert ("acme.second", 2) in world.triton.ready()
    assert (world.folder / "triton/acme.second/2").exists()


def test_a_load_that_failed_for_want_of_its_folder_says_nothing_of_the_version(
    world: World,
) -> None:
    world.serve(1)
    world.finish(2)

    def taken_away() -> None:
        """As by a registry that was stopped right before it removed what was not wanted then."""
        shutil.rmtree(world.folder / "triton/acme.demo/2")
        raise LoadFailed("no such file or directory")

    world.triton.meanwhile = taken_away
    world.look(20)
    assert world.triton.meanwhile is None
    assert world.rollout_states() == ["SETTLED", "SETTLED"]
    assert world.shares() == {2: 1.0}


class LongLook(Controller):
    """Its look lasts until it is told to end."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        self.stop = lambda: None
        self.began, self.end = threading.Event(), threading.Event()

    def look(self) -> None:
        assert self._store.hold()
        self.began.set()
        assert self.end.wait(30)


def test_the_lease_is_kept_through_a_look_that_outlasts_it(
    world: World, database: Database, clock: FakeClock
) -> None:
    def store_of(owner: str) -> ControlStore:
        said = FactRecorder(Outbox(OUTBOX))
        return ControlStore(database, said, endpoint="t", owner=owner, lease_seconds=0.3, now=clock)

    def is_renewed() -> bool:
        with database.transaction() as connection:
            query = select(CONTROLLERS.c.lease_expires).where(CONTROLLERS.c.id == "t")
            expires: datetime | None = connection.execute(query).scalar()
        return expires == clock() + timedelta(seconds=0.3)

    store, other = store_of("one"), store_of("two")
    controller = LongLook(store)
    loop = ControlLoop(controller, store, period_seconds=0.01)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        assert controller.began.wait(10)
        for _ in range(3):
            clock.advance(0.2)
            wait_until(is_renewed, 10, "a renewal")
            assert not other.hold()
    finally:
        loop.drain()
        controller.end.set()
        thread.join(10)
    assert other.hold()
