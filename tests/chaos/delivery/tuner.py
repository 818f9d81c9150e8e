"""The tuner: a job succeeds once a version made from its last checkpoint serves, and fails once
no road to that is left, as the compressor and the registry tell and show.

Their facts also tell of earlier checkpoints and of training runs, which say nothing of a job. The
end of training may be written down after the checkpoint has been rolled out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import events_pb2 as registry_events
from millrace_runtime.bus import Subscription
from millrace_runtime.leases import Lease
from millrace_runtime.outbox import Outbox
from millrace_tuner import steps
from millrace_tuner.app import TunerApp
from millrace_tuner.domain import (
    BaseVersion,
    Checkpoint,
    Content,
    Failure,
    FileReference,
    Job,
    JobState,
    Plan,
    RequestKey,
)
from millrace_tuner.events import FactRecorder, Listener
from millrace_tuner.methods import Adapter, Hyperparameters, Supervised
from millrace_tuner.schema import CHECKPOINTS, JOB_EVENTS, JOBS, METADATA, OUTBOX
from millrace_tuner.serving import Scene, SeenCompression, SeenRollout, SeenVersion
from millrace_tuner.store import JobStore
from tests.chaos.delivery.faults import Neighbours
from tests.chaos.delivery.world import Facts, Happening, State, World, happening

_LEASE_SECONDS = 1e9  # the work of a job goes on for as long as a history says
_MAXIMUM_JOBS = 3
_DIGEST = "sha256:" + "1" * 64
_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Road:
    """One compression of a checkpoint, and what became of it."""

    checkpoint: str
    target: str
    state: str = "RUNNING"
    passed: bool = False
    version: int = 0
    version_state: str = "REGISTERED"
    rollout: str = "PENDING"

    @property
    def compression(self) -> str:
        return f"tenants/acme/compressions/{self.checkpoint.rpartition('/')[2]}-{self.target}"

    @property
    def is_open(self) -> bool:
        return self.state == "RUNNING" or (self.passed and self.rollout == "PENDING")


@dataclass
class Tuned:
    """A job, its lease, and the roads that its checkpoints take."""

    lease: Lease
    is_trained: bool = False
    roads: dict[str, Road] = field(default_factory=dict)


class Neighbourhood:
    """The registry and the compressor (``app.Models``), as they are at the moment."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self.jobs: dict[str, Tuned] = {}

    def scene(self, tenant: str, model: str) -> Scene:
        self._neighbours.ask()
        roads = list(self.jobs[model.rpartition(":")[2]].roads.values())
        passed = [road for road in roads if road.version]
        return Scene(
            [_seen_compression(road) for road in roads],
            [_seen_version(road) for road in passed],
            [SeenRollout(road.version, road.rollout, "it fails") for road in passed],
        )

    def resolve(self, tenant: str, reference: str) -> BaseVersion:
        raise NotImplementedError

    def ids(self, tenant: str) -> Sequence[str]:
        raise NotImplementedError


class Files:
    """The data service (``app.Files``), which no fact leads to."""

    def training_file(self, name: str, field: str) -> FileReference:
        raise NotImplementedError

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        raise NotImplementedError


class TunerWorld(World):
    """Jobs by their ids, which are given here."""

    name = "tuner"
    swept: ClassVar = (
        compressor_events.CompressionRejected,
        compressor_events.CompressionFailed,
        registry_events.RolloutSettled,
        registry_events.RolloutReversed,
    )

    def __init__(self) -> None:
        super().__init__(METADATA)
        self.clear()

    def forget(self) -> None:
        self._models = Neighbourhood(self.neighbours)

    def start(self) -> None:
        self._store = self.store()
        self._app = TunerApp(
            self._store,
            Files(),
            self._models,
            ring_relay=lambda: None,
            ring_workers=[],
            now=self.now,
        )

    def store(self) -> JobStore:
        record = FactRecorder(Outbox(OUTBOX, self.now))
        return JobStore(
            self.database, record, owner="one", lease_seconds=_LEASE_SECONDS, now=self.now
        )

    def subscriptions(self) -> Sequence[Subscription]:
        return Listener(self._app).subscriptions()

    def possible(self) -> Sequence[Happening]:
        jobs = self._models.jobs
        number = len(jobs) + 1
        made = [
            happening("job", f"j{number}", targets) for targets in (1, 2) if number <= _MAXIMUM_JOBS
        ]
        trained = [happening("trained", id) for id, job in jobs.items() if not job.is_trained]
        ends = [
            happening(verb, id, key)
            for id, job in jobs.items()
            for key, road in job.roads.items()
            for verb in _next_of(road)
        ]
        return [*made, *trained, *ends, happening("stranger")]

    def job(self, id: str, targets: int) -> Facts:
        """A job trains up to its last checkpoint, which is compressed for ``targets`` targets."""
        self._store.add(_job(id), RequestKey("", ""))
        lease = self._store.claim()
        assert lease is not None and lease.id == id
        self._store.change_leased(lease, lambda job: steps.start(job, self.clock()))
        found = Tuned(lease)
        for name, is_final in (("first", False), ("last", True)):
            checkpoint = _checkpoint(id, name, is_final)
            self._store.add_checkpoint(lease, checkpoint)
            for target in ("int8", "fp32")[: targets if is_final else 1]:
                found.roads[f"{name}-{target}"] = Road(checkpoint.name, target)
        self._models.jobs[id] = found
        return ()

    def trained(self, id: str) -> Facts:
        """Its training's end is written down."""
        job = self._models.jobs[id]
        job.is_trained = True
        results = "tenants/acme/files/f"
        self._store.change_leased(
            job.lease, lambda job: steps.end_training(job, 100, results, self.clock())
        )
        return ()

    def reject(self, id: str, key: str) -> Facts:
        road = self._models.jobs[id].roads[key]
        road.state = "SUCCEEDED"
        fact = compressor_events.CompressionRejected(
            compression=road.compression, checkpoint=_reference(road.checkpoint)
        )
        return (("acme", fact),)

    def fail(self, id: str, key: str) -> Facts:
        road = self._models.jobs[id].roads[key]
        road.state = "FAILED"
        fact = compressor_events.CompressionFailed(
            compression=road.compression, checkpoint=_reference(road.checkpoint)
        )
        return (("acme", fact),)

    def accept(self, id: str, key: str) -> Facts:
        """The compressor's artifact becomes a version; the tuner is not told."""
        job = self._models.jobs[id]
        road = job.roads[key]
        road.state, road.passed = "SUCCEEDED", True
        road.version = 1 + max(other.version for other in job.roads.values())
        for other in job.roads.values():  # a later version takes the turn of those that wait
            if other is not road and other.version and other.rollout == "PENDING":
                other.rollout = "SUPERSEDED"
        return ()

    def settle(self, id: str, key: str) -> Facts:
        """It serves, and what served before is retired."""
        job = self._models.jobs[id]
        for other in job.roads.values():
            if other.version_state == "SERVING":
                other.version_state = "RETIRED"
        road = job.roads[key]
        road.rollout, road.version_state = "SETTLED", "SERVING"
        fact = registry_events.RolloutSettled(
            rollout="tenants/acme/rollouts/r", checkpoint=road.checkpoint
        )
        return (("acme", fact),)

    def reverse(self, id: str, key: str) -> Facts:
        """It went wrong; the registry retires a version that was reversed."""
        road = self._models.jobs[id].roads[key]
        road.rollout, road.version_state = "REVERSED", "RETIRED"
        fact = registry_events.RolloutReversed(
            rollout="tenants/acme/rollouts/r", checkpoint=road.checkpoint, reason="it fails"
        )
        return (("acme", fact),)

    def stranger(self) -> Facts:
        """A training run's checkpoint serves."""
        fact = registry_events.RolloutSettled(
            rollout="tenants/acme/rollouts/r", checkpoint="tenants/acme/runs/r/checkpoints/c"
        )
        return (("acme", fact),)

    def sweep(self) -> None:
        self._app.reconcile()

    def work(self) -> bool:
        """What is left after a rollout is nobody's work."""
        return False

    def finish(self) -> None:
        for id, job in self._models.jobs.items():
            if not job.is_trained:
                self.trained(id)
        self.sweep()

    def state(self, has_worked: bool) -> State:
        self._check()
        return {
            "jobs": self.lines(JOBS, "plan", "progress"),
            "checkpoints": self.lines(CHECKPOINTS),
            "told": self.lines(JOB_EVENTS, "id"),
            "facts": self.facts(OUTBOX),
        }

    def _check(self) -> None:
        """The user is told what is so: a job whose model serves has succeeded, and no other."""
        for id, job in self._models.jobs.items():
            roads = [road for road in job.roads.values() if road.checkpoint.endswith("last")]
            serves = any(road.rollout == "SETTLED" for road in roads)
            is_open = any(road.is_open for road in roads)
            found = self._app.get("acme", id).state
            wanted = JobState.RUNNING if is_open else JobState.FAILED
            wanted = JobState.SUCCEEDED if serves else wanted
            assert found == wanted, f"job {id} is {found}, and should be {wanted}"


def _next_of(road: Road) -> Sequence[str]:
    if road.state == "RUNNING":
        return ("accept", "reject", "fail")
    return ("settle", "reverse") if road.is_open else ()


def _seen_compression(road: Road) -> SeenCompression:
    failure = Failure("CHECKPOINT_INVALID", "it is damaged") if road.state == "FAILED" else None
    is_rejected = road.state == "SUCCEEDED" and not road.passed
    reasons = ("it lost too much",) if is_rejected else ()
    return SeenCompression(
        road.compression, road.checkpoint, road.state, road.passed, reasons, failure
    )


def _seen_version(road: Road) -> SeenVersion:
    reason = "reversed: it fails" if road.rollout == "REVERSED" else ""
    return SeenVersion(road.version, road.compression, road.checkpoint, road.version_state, reason)


def _reference(checkpoint: str) -> compressor_pb2.CheckpointReference:
    return compressor_pb2.CheckpointReference(name=checkpoint)


def _job(id: str) -> Job:
    content = Content("file:///c", _DIGEST, 1)
    plan = Plan(
        base_model="demo",
        base=BaseVersion("tenants/acme/models/demo/versions/1", "demo", 1, content),
        training_file=FileReference("tenants/acme/files/f", content, 10),
        validation_file=None,
        suffix="",
        seed=0,
        method=Supervised(),
        hyperparameters=Hyperparameters(1, 1, 1.0),
        adapter=Adapter(),
    )
    return Job("acme", id, plan, f"ft:demo:acme::{id}", _EPOCH, _EPOCH, validate_time=_EPOCH)


def _checkpoint(job: str, name: str, is_final: bool) -> Checkpoint:
    return Checkpoint(
        tenant="acme",
        job=job,
        id=f"{job}-{name}",
        model=f"ft:demo:acme::{job}",
        step=2 if is_final else 1,
        train_loss=2.5,
        valid_loss=2.25,
        trained_tokens=100,
        final=is_final,
        content=Content(f"file:///{name}", f"sha256:{name}", 1),
        base_checkpoint_digest=_DIGEST,
        training_file_digest=_DIGEST,
        create_time=_EPOCH,
    )
