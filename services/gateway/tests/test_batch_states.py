"""Batches whose workers are killed, stopped and overtaken between any two steps."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from batch_world import World
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from millrace_gateway.batches.domain import Status
from millrace_gateway.store import METADATA
from millrace_runtime.database import Database, open_database

WORKERS = st.integers(0, 1)
LINES = st.sets(st.integers(0, 3), max_size=2)
DATABASE: list[Database] = []


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    """One database in memory for all; each world begins with empty tables."""
    database = open_database("sqlite:///:memory:")
    METADATA.create_all(database.engine)
    DATABASE.append(database)
    yield
    DATABASE.clear()
    database.close()


def at_every_step(folder: Path, happens: Callable[[World], None]) -> list[Status]:
    """A batch of three lines for each step of its life, at which ``happens``: how each ended."""
    found: list[Status] = []
    for step in range(200):
        world = World(DATABASE[0], folder, count=3, wrong={1}, busy={2})
        world.work(0, step)
        is_over = not world.workers[0].is_busy
        happens(world)
        world.note()
        found.append(world.finish().status)
        if is_over and step:
            return found
    raise AssertionError("a batch of three lines has fewer steps")


def test_a_worker_is_killed(tmp_path: Path) -> None:
    ends = at_every_step(tmp_path, lambda world: world.workers[0].kill())
    assert set(ends) == {Status.COMPLETED}
    assert len(ends) > 20, "between all that can be seen from outside"


@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_a_worker_lies_still_while_another_goes_on(tmp_path: Path, steps: int) -> None:
    def overtaken(world: World) -> None:
        world.lease_ends()
        world.work(1, steps)
        world.work(0, 1000)
        world.work(1, 1000)

    assert set(at_every_step(tmp_path, overtaken)) == {Status.COMPLETED}


def test_a_batch_is_cancelled(tmp_path: Path) -> None:
    def cancelled(world: World) -> None:
        world.cancel()
        world.work(1, 1000)
        world.work(0, 1000)

    assert set(at_every_step(tmp_path, cancelled)) == {Status.CANCELLED, Status.COMPLETED}


def test_a_cancelled_batch_is_killed_on_its_way(tmp_path: Path) -> None:
    def cancelled(world: World) -> None:
        world.cancel()
        world.work(1, 3)
        world.workers[1].kill()

    assert set(at_every_step(tmp_path, cancelled)) == {Status.CANCELLED, Status.COMPLETED}


def test_a_batch_makes_room_for_a_rival(tmp_path: Path) -> None:
    """At whatever step: nothing is asked twice for it, and both end."""
    most = 0

    def disturbed(world: World) -> None:
        nonlocal most
        world.rival_comes()
        world.turn_ends()
        turns = 0
        while world.workers[0].is_busy or world.workers[0].store.standing().waiting:
            world.work(0, 1000)
            turns += 1
        most = max(most, turns)
        assert len(world.model.asked) == 3 + 3 + 1, "each line once, and one was put off"

    assert set(at_every_step(tmp_path, disturbed)) == {Status.COMPLETED}
    assert most == 3, "its turn, the rival's, and its last"


@pytest.mark.parametrize("killed", [True, False])
def test_time_runs_out(tmp_path: Path, killed: bool) -> None:
    def late(world: World) -> None:
        world.a_day_passes()
        if killed:
            world.workers[0].kill()
        world.work(0, 4)

    assert set(at_every_step(tmp_path, late)) == {Status.EXPIRED, Status.COMPLETED}


def test_the_input_is_deleted_on_the_way(tmp_path: Path) -> None:
    def deleted(world: World) -> None:
        world.delete_input()
        world.workers[0].kill()

    assert set(at_every_step(tmp_path, deleted)) == {Status.FAILED, Status.COMPLETED}


class Batches(RuleBasedStateMachine):
    """All of it in any order."""

    @initialize(
        count=st.integers(1, 4),
        wrong=LINES,
        busy=LINES,
        concurrency=st.integers(1, 3),
        disturbance=st.sampled_from(["", "cancel", "day", "deletion"]),
    )
    def begin(
        self, count: int, wrong: set[int], busy: set[int], concurrency: int, disturbance: str
    ) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.world = World(DATABASE[0], folder, count, wrong, busy, concurrency)
        self.disturbance = disturbance

    @rule(worker=WORKERS, count=st.integers(1, 15), choice=st.integers(0, 3))
    def work(self, worker: int, count: int, choice: int) -> None:
        self.world.work(worker, count, choice)

    @rule(worker=WORKERS, count=st.integers(1, 15))
    def overtake(self, worker: int, count: int) -> None:
        """One lies still past its lease, and the other goes on; both may work on after that."""
        self.world.lease_ends()
        self.world.work(1 - worker, count)

    @rule(worker=WORKERS)
    def renew(self, worker: int) -> None:
        if self.world.workers[worker].is_busy:
            self.world.workers[worker].renew()

    @rule()
    def rival(self) -> None:
        """Another tenant waits until a turn is over."""
        self.world.rival_comes()
        self.world.turn_ends()

    @rule(worker=WORKERS)
    def kill(self, worker: int) -> None:
        self.world.workers[worker].kill()

    @precondition(lambda self: self.disturbance and self.world.kept)
    @rule()
    def disturb(self) -> None:
        """Something that happens to few batches, after the first answer."""
        match self.disturbance:
            case "cancel":
                self.world.cancel()
            case "day":
                self.world.a_day_passes()
            case "deletion":
                self.world.delete_input()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            self.folder.cleanup()


Batches.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBatches = Batches.TestCase
