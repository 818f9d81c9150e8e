"""The trainer: runs wait for datasets, of which it is told that they are ready or have failed.

A run is paused and resumed meanwhile, and asked for in the moment in which its dataset becomes
ready: the data service's answer is old by the time the run is written down.
"""

import contextlib
from collections.abc import Sequence
from typing import ClassVar

from millrace.data.v1 import events_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_runtime.bus import Subscription
from millrace_runtime.errors import FailedPrecondition
from millrace_runtime.outbox import Outbox
from millrace_trainer.app import TrainerApp
from millrace_trainer.domain import Content, Failure, RequestKey
from millrace_trainer.domain import State as RunState
from millrace_trainer.events import FactRecorder, subscriptions
from millrace_trainer.schema import METADATA, OUTBOX, RUNS
from millrace_trainer.store import RunStore
from tests.chaos.delivery.faults import Neighbours
from tests.chaos.delivery.world import Facts, Happening, State, World, happening, renamed

_LEASE_SECONDS = 15
_DATASETS = tuple(
    f"tenants/{tenant}/datasets/{name}" for tenant in ("acme", "beta") for name in ("d1", "d2")
)
_MAXIMUM_RUNS = 4
# What no fact changes.
_UNTOUCHED = ("architecture", "hyperparameters", "progress", "request_digest", "initial_checkpoint")


class Datasets:
    """The data service (``app.Datasets``)."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self.ended: dict[str, Content | Failure] = {}
        self.is_late = False

    def find(self, name: str) -> Content | Failure | None:
        self._neighbours.ask()
        return None if self.is_late else self.ended.get(name)


class TrainerWorld(World):
    """Runs by the name of their model, which is another for each."""

    name = "trainer"
    swept: ClassVar = (events_pb2.DatasetReady, events_pb2.DatasetFailed)

    def __init__(self) -> None:
        super().__init__(METADATA)
        self.clear()

    def forget(self) -> None:
        self._datasets = Datasets(self.neighbours)
        self._runs: dict[str, tuple[str, str]] = {}

    def start(self) -> None:
        record = FactRecorder(Outbox(OUTBOX, self.now))
        self._store = RunStore(
            self.database, record, owner="one", lease_seconds=_LEASE_SECONDS, now=self.now
        )
        self._app = TrainerApp(
            self._store,
            self._datasets,
            ring=lambda: None,
            ring_workers=lambda: None,
            now=self.now,
        )

    def subscriptions(self) -> Sequence[Subscription]:
        return subscriptions(self._app)

    def possible(self) -> Sequence[Happening]:
        ended = self._datasets.ended
        building = [name for name in _DATASETS if name not in ended]
        ends = [happening(end, name) for name in building for end in ("ready", "failed")]
        number = len(self._runs) + 1
        wishes = [
            happening("run", f"m{number}", name, is_late)
            for name in _DATASETS
            for is_late in (False, True)
            if number <= _MAXIMUM_RUNS
            and not (isinstance(ended.get(name), Failure) and not is_late)
        ]
        holds = [happening(verb, model) for model in self._runs for verb in ("pause", "resume")]
        return [*wishes, *ends, *holds]

    def ready(self, name: str) -> Facts:
        self._datasets.ended[name] = Content(f"file:///{name}", "sha256:" + "a" * 64, 10)
        content = lifecycle_pb2.Content(
            uri=f"file:///{name}", digest="sha256:" + "a" * 64, size_bytes=10
        )
        return ((_tenant(name), events_pb2.DatasetReady(dataset=name, content=content)),)

    def failed(self, name: str) -> Facts:
        self._datasets.ended[name] = Failure("DATASET_TOO_SMALL", "one document")
        failure = lifecycle_pb2.Failure(reason="DATASET_TOO_SMALL", message="one document")
        return ((_tenant(name), events_pb2.DatasetFailed(dataset=name, failure=failure)),)

    def run(self, model: str, dataset: str, is_late: bool) -> Facts:
        """A user asks for a run; ``is_late``: the data service's answer is from before."""
        self._datasets.is_late = is_late
        tenant, request = _tenant(dataset), RequestKey(f"request-{model}", "digest")
        run = self._app.create(tenant, model, dataset, "", {}, {}, request)
        self._datasets.is_late = False
        self._runs[model] = (tenant, run.id)
        return ()

    def pause(self, model: str) -> Facts:
        with contextlib.suppress(FailedPrecondition):  # it has ended
            self._app.pause(*self._runs[model])
        return ()

    def resume(self, model: str) -> Facts:
        with contextlib.suppress(FailedPrecondition):  # it has ended
            self._app.resume(*self._runs[model])
        return ()

    def sweep(self) -> None:
        self._app.reconcile()

    def work(self) -> bool:
        lease = self._store.claim()
        if lease is None:
            return False
        self._store.start(lease)
        self._store.succeed(lease)
        return True

    def finish(self) -> None:
        for model in self._runs:
            self.resume(model)
        self.sweep()
        self.clock.advance(_LEASE_SECONDS + 1)
        while self.work():
            pass

    def state(self, has_worked: bool) -> State:
        """Whenever a run was worked on, it ends in the same way."""
        found = {"runs": self.lines(RUNS, *_UNTOUCHED), "facts": self.facts(OUTBOX)}
        names = {id: model for model, (_, id) in self._runs.items()}
        unended = [
            row["model"]
            for row in self.rows(RUNS)
            if not RunState(row["state"]).is_final and row["dataset_name"] in self._datasets.ended
        ]
        assert not unended, f"runs whose dataset has ended wait for ever: {unended}"
        return renamed(found, names)


def _tenant(name: str) -> str:
    return name.split("/")[1]
