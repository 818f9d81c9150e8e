"""The compressor: each finished checkpoint is compressed once for every target that is wanted.

Checkpoints of one run supersede older ones that wait, but not its last. Which of them a worker
has taken up before a newer one came depends on the moment, and so may differ where work was done
in the middle of a history. The newest of a run and the last are always compressed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from google.protobuf.message import Message

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_compressor.app import CompressorApp
from millrace_compressor.domain import (
    SUPERSEDED,
    Checkpoint,
    Compression,
    Content,
    Failure,
    GatePolicy,
    Measurements,
    Target,
    Verdict,
)
from millrace_compressor.domain import (
    State as WorkState,
)
from millrace_compressor.events import FactRecorder, subscriptions
from millrace_compressor.schema import COMPRESSIONS, CONSIDERED, METADATA, OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_runtime.bus import Subscription
from millrace_runtime.outbox import Outbox
from tests.chaos.delivery.faults import Neighbours
from tests.chaos.delivery.world import Facts, Happening, State, World, happening, renamed

_LEASE_SECONDS = 15
_STEPS = 100
_VERDICTS = ("passes", "is-rejected", "fails")
_GATE = GatePolicy(max_perplexity_increase=0.02)
_MEASURED = Measurements(original_perplexity=10.0, artifact_perplexity=10.1)


@dataclass(frozen=True)
class Source:
    """A run or a tuning job, which leaves checkpoints of one model."""

    parent: str
    model: str

    @property
    def tenant(self) -> str:
        return self.parent.split("/")[1]

    @property
    def is_job(self) -> bool:
        return "/jobs/" in self.parent


# Two runs train one model at a time; another tenant's has the same name, and the same bytes.
_SOURCES = {
    "A": Source("tenants/acme/runs/A", "demo"),
    "B": Source("tenants/acme/runs/B", "demo"),
    "C": Source("tenants/acme/runs/C", "final-only"),
    "D": Source("tenants/beta/runs/A", "demo"),
    "J": Source("tenants/acme/jobs/J", "ft:demo:acme:docs:k3x9"),
}


_SEVERAL = (Target.OPENVINO_INT8, Target.OPENVINO_FP32, Target.SAFETENSORS)


@dataclass(frozen=True)
class Wanted:
    """What a deployment wants (``app.Wanted``)."""

    deployment: str
    targets: Sequence[Target]
    gate: GatePolicy
    recipe: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)


class Deployments:
    """The registry (``app.Deployments``). One tenant wants several targets."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours

    def match(self, tenant: str, checkpoint: Checkpoint) -> Sequence[Wanted]:
        self._neighbours.ask()
        if checkpoint.model == "final-only" and not checkpoint.final:
            return []
        targets = _SEVERAL if tenant == "beta" else _SEVERAL[:1]
        return [Wanted(f"tenants/{tenant}/deployments/{checkpoint.model}", targets, _GATE)]


class Checkpoints:
    """The trainer and the tuner (``app.Checkpoints``)."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self.finished: list[tuple[str, Checkpoint, datetime]] = []

    def all(self) -> Iterable[tuple[str, Checkpoint, datetime]]:
        self._neighbours.ask()
        return reversed(self.finished)


class CompressorWorld(World):
    """Compressions by checkpoint and target."""

    name = "compressor"
    swept: ClassVar = (trainer_events.CheckpointFinished, tuner_events.CheckpointFinished)

    def __init__(self) -> None:
        super().__init__(METADATA)
        self.clear()

    def forget(self) -> None:
        self._checkpoints = Checkpoints(self.neighbours)
        self._verdicts: dict[str, str] = {}

    def start(self) -> None:
        self._store = self.store()
        self._app = CompressorApp(
            self._store,
            Deployments(self.neighbours),
            self._checkpoints,
            ring_workers=lambda: None,
        )

    def store(self) -> CompressionStore:
        record = FactRecorder(Outbox(OUTBOX, self.now))
        return CompressionStore(
            self.database, record, owner="one", lease_seconds=_LEASE_SECONDS, now=self.now
        )

    def subscriptions(self) -> Sequence[Subscription]:
        return subscriptions(self._app)

    def possible(self) -> Sequence[Happening]:
        ended = {_source_of(c.name) for _, c, _ in self._checkpoints.finished if c.final}
        return [
            happening(what, source, verdict)
            for source in _SOURCES
            for what in ("checkpoint", "last")
            for verdict in _VERDICTS
            if source not in ended
        ] or [happening("nothing")]

    def nothing(self) -> Facts:
        return ()

    def checkpoint(self, source: str, verdict: str) -> Facts:
        return self._finish(_SOURCES[source], verdict, final=False)

    def last(self, source: str, verdict: str) -> Facts:
        return self._finish(_SOURCES[source], verdict, final=True)

    def _finish(self, source: Source, verdict: str, *, final: bool) -> Facts:
        of_source = [
            c for _, c, _ in self._checkpoints.finished if c.name.startswith(source.parent)
        ]
        step = (len(of_source) + 1) * _STEPS
        content = Content(f"file:///{source.model}/{step}", _digest(source, step), 10)
        evaluation = Content("file:///held-out", "sha256:" + "e" * 64, 10)
        name = f"{source.parent}/checkpoints/ckpt-{step:08d}"
        found = Checkpoint(name, source.model, step, final, content, evaluation)
        self._checkpoints.finished.append((source.tenant, found, self.clock()))
        self._verdicts[name] = verdict
        return ((source.tenant, _fact_of(source, found)),)

    def sweep(self) -> None:
        self._app.reconcile()

    def work(self) -> bool:
        lease = self._store.claim()
        if lease is None:
            return False
        compression = self._store.start(lease)
        verdict = self._verdicts[compression.order.checkpoint.name]
        if verdict == "fails":
            self._store.fail(lease, Failure("CHECKPOINT_INVALID", "it is damaged"))
        else:
            artifact = Content("file:///artifact", "sha256:" + "f" * 64, 5)
            reasons = () if verdict == "passes" else ("it lost too much",)
            judged = Verdict(verdict == "passes", reasons)
            self._store.succeed(lease, artifact, _MEASURED, judged)
        return True

    def finish(self) -> None:
        self.sweep()
        self.clock.advance(_LEASE_SECONDS + 1)
        while self.work():
            pass

    def state(self, has_worked: bool) -> State:
        compressions = self._store.page("-", "", "", 1000)
        names = {c.id: f"{c.order.checkpoint.name}|{c.order.target}" for c in compressions}
        self._check(compressions)
        passing = {c.id for c in compressions if has_worked and not self._is_certain(c)}
        found = {
            "compressions": [
                line for line in self.lines(COMPRESSIONS) if not any(id in line for id in passing)
            ],
            "ordered": list(names.values()),
            "considered": self.lines(CONSIDERED, "time"),
            "facts": [line for line in self.facts(OUTBOX) if not any(id in line for id in passing)],
        }
        return renamed(found, names)

    def _is_certain(self, compression: Compression) -> bool:
        """Whether it is compressed in any case: it is the last of its run, or the newest."""
        checkpoint = compression.order.checkpoint
        parent = _parent_of(checkpoint.name)
        newest = max(
            c.step for _, c, _ in self._checkpoints.finished if _parent_of(c.name) == parent
        )
        return checkpoint.final or checkpoint.step == newest

    def _check(self, compressions: Sequence[Compression]) -> None:
        """Each has ended, with one fact that says so, or was superseded, without one."""
        told = Counter(event.message.compression for event in self.events(OUTBOX))
        for found in compressions:
            is_superseded = found.failure == SUPERSEDED
            assert found.state.has_ended, f"{found.order.checkpoint.name} is never compressed"
            assert (found.state == WorkState.CANCELLED) == is_superseded
            assert told[found.name] == (0 if is_superseded else 1), (
                f"{told[found.name]} facts of {found.order.checkpoint.name}, which {found.state}"
            )


def _digest(source: Source, step: int) -> str:
    """Of the run's place among its tenant's, so that two tenants have checkpoints alike."""
    run = source.parent.split("/")[-1]
    return f"sha256:{ord(run):032x}{step:032x}"


def _parent_of(checkpoint: str) -> str:
    return checkpoint.partition("/checkpoints/")[0]


def _source_of(checkpoint: str) -> str:
    return next(key for key, s in _SOURCES.items() if s.parent == _parent_of(checkpoint))


def _fact_of(source: Source, found: Checkpoint) -> Message:
    kind = tuner_events if source.is_job else trainer_events
    fact = kind.CheckpointFinished(
        checkpoint=found.name,
        model=found.model,
        step=found.step,
        final=found.final,
        content=_content(found.content),
        evaluation=_content(found.evaluation),
    )
    setattr(fact, "job" if source.is_job else "run", source.parent)
    return fact


def _content(content: Content) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(
        uri=content.uri, digest=content.digest, size_bytes=content.size_bytes
    )
