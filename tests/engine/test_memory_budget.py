"""A Triton with memory for three versions: a fourth makes the one asked for longest ago leave."""

import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from millrace_registry.domain import HoldRule, Serving, utc_now
from millrace_registry.machine_memory import engine_bytes
from millrace_registry.memory import need_bytes
from millrace_registry.strategies import Immediate
from millrace_registry.triton import Triton
from millrace_registry.triton_config import EngineSettings
from millrace_runtime.database import Database, open_database
from millrace_testkit.servers import wait_until
from tests.engine.served import CONTROL_KEY, MODEL, ServedEngine
from tests.engine.tiny_model import TinyModel

# The registry as its own tests compose it.
sys.path.insert(0, str(Path(__file__).parents[2] / "services" / "registry" / "tests"))
from registry_builders import World

MIB = 2**20
PLACES = 3
NAME = "acme.demo"
RULE = HoldRule(busy=timedelta(0))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/registry.db")
    yield opened
    opened.close()


@pytest.fixture
def world(tiny: TinyModel, tmp_path: Path, database: Database) -> Iterator[World]:
    """Version 4 serves, on a Triton that also runs what nobody wants; 1 to 3 never have."""
    engine = ServedEngine(tmp_path, tiny.artifact)
    engine.start()
    try:
        (tmp_path / "triton").symlink_to(tmp_path / "models")
        need = need_bytes(100, EngineSettings(), Serving())
        triton = Triton(engine.address, CONTROL_KEY)
        world = World(
            database,
            tmp_path,
            utc_now,
            triton=triton,
            endpoint=engine.address,
            budget_bytes=PLACES * need,
        )
        for number in (1, 2, 3, 4):
            copy = f"demo-{number}"
            world.artifact(
                copy, write=lambda to: shutil.copytree(tiny.artifact, to, dirs_exist_ok=True)
            )
            world.finish_again(number)
        (found,), _ = world.app.deployments("acme", 0, "")
        world.app.update_deployment(replace(found, strategy=Immediate()), None)
        look_until(world, {4: 1.0})
        yield world
    finally:
        engine.stop()


def look_until(world: World, shares: dict[int, float]) -> None:
    def is_so() -> bool:
        world.controller.look()
        return bool(world.shares() == shares)

    wait_until(is_so, 90, f"routes with {shares}")


def running(world: World) -> set[tuple[str, int]]:
    return {key for key, loaded in world.triton.index().items() if loaded.state == "READY"}


class Clients:
    """They ask versions again and again, until they are told to stop; what failed is kept."""

    def __init__(self, world: World, versions: tuple[int, ...]) -> None:
        self._triton = world.triton
        self._ended = threading.Event()
        self.answers, self.failures = 0, list[str]()
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in versions]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, version: int) -> None:
        while not self._ended.is_set():
            error = self._triton.ask(NAME, version, "def main(")
            self.answers += not error
            self.failures += [error] if error else []


def test_a_fourth_version_takes_the_place_of_the_one_asked_for_longest_ago(world: World) -> None:
    wait_until(lambda: world.controller.look() is None and len(running(world)) == 1, 60, "one left")
    assert (MODEL, 1) not in running(world)  # nobody wanted it
    for number in (1, 2):
        world.catalogue.hold(world.version(number), RULE)
    look_until(world, {1: 0.0, 2: 0.0, 4: 1.0})
    with Clients(world, (2, 4)) as clients:
        world.catalogue.hold(world.version(3), RULE)
        look_until(world, {2: 0.0, 4: 1.0})
        assert (NAME, 3) not in running(world)  # not beside the one that drains
        look_until(world, {2: 0.0, 3: 0.0, 4: 1.0})
        wait_until(lambda: clients.answers > 20, 60, "clients have been answered")
    assert clients.failures == []
    assert running(world) == {(NAME, 2), (NAME, 3), (NAME, 4)}
    taken = engine_bytes(world.folder / "triton")
    assert set(taken) == running(world)
    assert all(64 * MIB < size < 1024 * MIB for size in taken.values())
