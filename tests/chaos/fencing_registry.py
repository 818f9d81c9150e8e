"""Registries that share a Triton endpoint: real controllers, and a Triton that all of them reach.

The played Triton lives in the harness. It keeps who called it when, so that what a registry did
after it had lost its lease can be told.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from millrace_registry.control import Controller
from millrace_registry.control_loop import ControlLoop
from millrace_registry.control_store import ControlStore
from millrace_registry.domain import RolloutState, VersionState, utc_now
from millrace_registry.events import FactRecorder
from millrace_registry.repository import ModelRepository
from millrace_registry.rollout import EnterStep
from millrace_registry.schema import OUTBOX
from millrace_registry.strategies import Stage
from millrace_registry.traffic import Seen
from millrace_registry.triton import Loaded, NotScored
from millrace_registry.triton_config import EngineSettings
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.leases import LeaseLost
from millrace_runtime.outbox import Outbox
from millrace_runtime.parity import Scores

# The registry's own tests know how to fill a registry; they are not a package.
sys.path.append(str(Path(__file__).parents[2] / "services" / "registry" / "tests"))

from registry_builders import FakeTriton, World

TABLES = ("controllers", "models", "aliases", "versions", "rollouts", "routes", "outbox")
ENDPOINT = "triton:8001"
_AUTHKEY = b"fencing"
_LOAD_SECONDS = 0.2


@dataclass(frozen=True)
class Call:
    """One change that a registry asked of Triton, at ``time`` (seconds since the epoch)."""

    time: float
    caller: str
    verb: str


class SharedTriton(FakeTriton):
    """Reached by several registries at once; a load takes a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lock = threading.RLock()
        self.calls: list[Call] = []

    def call(self, caller: str, verb: str, *arguments: Any) -> Any:
        if verb in ("load", "unload"):
            self.calls.append(Call(time.time(), caller, verb))
            time.sleep(_LOAD_SECONDS)
        with self._lock:
            return getattr(super(), verb)(*arguments)


class _Manager(BaseManager):
    pass


_Manager.register("triton")


def serve_tritons(tritons: Mapping[str, SharedTriton]) -> tuple[str, int]:
    """Let other processes reach ``tritons`` for as long as this one runs; where."""

    class Serving(BaseManager):
        pass

    Serving.register("triton", callable=lambda stage: tritons[stage])
    server = Serving(address=("127.0.0.1", 0), authkey=_AUTHKEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.address  # type: ignore[misc]
    return str(host), int(port)


def connect_triton(address: tuple[str, int], stage: str, caller: str) -> "RemoteTriton":
    manager = _Manager(address=address, authkey=_AUTHKEY)
    manager.connect()
    return RemoteTriton(manager.triton(stage), caller)  # type: ignore[attr-defined]


class RemoteTriton:
    """``control.ModelControl``, in another process."""

    def __init__(self, proxy: Any, caller: str) -> None:
        self._proxy = proxy
        self._caller = caller

    def index(self) -> Mapping[tuple[str, int], Loaded]:
        found: Mapping[tuple[str, int], Loaded] = self._proxy.call(self._caller, "index")
        return found

    def load(self, model: str) -> None:
        self._proxy.call(self._caller, "load", model)

    def unload(self, model: str) -> None:
        self._proxy.call(self._caller, "unload", model)

    def ask(self, model: str, version: int, prompt: str) -> str:
        return str(self._proxy.call(self._caller, "ask", model, version, prompt))

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores:
        raise NotScored("no version here has anything to compare with")

    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None:
        raise NotScored("no version here has anything to compare with")

    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int:
        raise NotScored("no version here has anything to compare with")


class Registry:
    """One of several registries on one database and one endpoint."""

    def __init__(self, database: Database, folder: Path, owner: str, triton: RemoteTriton) -> None:
        self._database = database
        self._folder = folder
        self._owner = owner
        self._triton = triton

    def loop(self, lease_seconds: float, tell: Callable[..., None]) -> ControlLoop:
        store = ControlStore(
            self._database,
            FactRecorder(Outbox(OUTBOX)),
            endpoint=ENDPOINT,
            owner=self._owner,
            lease_seconds=lease_seconds,
        )
        controller = InsistentController(
            store,
            self._triton,
            ModelRepository(self._folder / "triton", EngineSettings()),
            ContentStore(str(self._folder / "data"), self._folder / "cache"),
            life=self._owner,
            drain=timedelta(seconds=1),
            ring=lambda: None,
        )
        controller.take(store, tell)
        loop = ControlLoop(controller, store, period_seconds=0.2)
        loop.name = self._owner
        return loop


class InsistentController(Controller):
    """Tries every write it has once one was refused."""

    def take(self, store: ControlStore, tell: Callable[..., None]) -> None:
        self._control, self._tell = store, tell

    def look(self) -> None:
        try:
            super().look()
        except LeaseLost:
            writes = self._writes()
            accepted = sum(_is_accepted(write) for write in writes)
            self._tell(tried=len(writes), accepted=accepted, id=self._life, epoch=0)
            raise

    def _writes(self) -> list[Callable[[], object]]:
        control, nothing = self._control, Seen()
        step = EnterStep(0, 1.0)
        writes: list[Callable[[], object]] = [
            lambda: control.write_routes([], lambda answering: []),
            lambda: control.forget_traffic(utc_now()),
        ]
        for desired in control.desired(utc_now()):
            for version in desired.versions:
                writes.append(lambda version=version: control.quarantine(version, "stale"))
            for rollout in desired.rollouts:
                writes += [
                    lambda rollout=rollout: control.start_loading(rollout, 0),
                    lambda rollout=rollout: control.enter_step(rollout, step, Stage(), nothing),
                    lambda rollout=rollout: control.count(rollout, nothing),
                    lambda rollout=rollout: control.supersede(rollout),
                    lambda rollout=rollout: control.settle(rollout, nothing, "stale"),
                    lambda rollout=rollout: control.reverse(rollout, nothing, "stale"),
                ]
        return writes


def _is_accepted(write: Callable[[], object]) -> bool:
    try:
        write()
    except LeaseLost:
        return False
    return True


class Endpoint:
    """One registry's world as the harness drives it, and looks at it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.triton = SharedTriton(folder / "triton")
        self._world = World(database, folder, utc_now, triton=self.triton, endpoint=ENDPOINT)
        self._versions = 0
        self.finish_artifact()

    def finish_artifact(self) -> None:
        """The compressor has made one more version."""
        self._versions += 1
        self._world.finish(1000 + self._versions)  # checkpoints' names sort by age

    def is_quiet(self) -> bool:
        """The newest version alone serves, runs and is routed to; every rollout has ended."""
        return (
            all(RolloutState(state).has_ended for state in self._world.rollout_states())
            and self._world.version(self._versions).state == VersionState.SERVING
            and self._world.shares() == {self._versions: 1.0}
            and self.triton.ready() == {("acme.demo", self._versions)}
        )

    def wrongs(self) -> list[str]:
        """What became of the endpoint that undisturbed registries would not have brought about."""
        states = self._world.rollout_states()
        found = [f"a rollout ended {s}" for s in states if s not in ("SETTLED", "SUPERSEDED")]
        if len(states) != self._versions:
            found.append(f"{len(states)} rollouts of {self._versions} versions")
        if not self.is_quiet():
            ready = sorted(self.triton.ready())
            found.append(f"at the end routes are {self._world.shares()} and Triton runs {ready}")
        return found + self._facts_said_twice()

    def _facts_said_twice(self) -> list[str]:
        seen: set[str] = set()
        found = []
        for event in self._world.events():
            said = f"{event.fact.fact} {event.message}"
            if said in seen:
                found.append(f"said twice: {said}")
            seen.add(said)
        return found
