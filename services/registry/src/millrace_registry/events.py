"""What the registry does about the facts that it consumes, and the facts that it publishes."""

from collections.abc import Sequence

from google.protobuf.message import Message
from sqlalchemy import Connection

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.data.v1 import events_pb2 as data_events
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_registry import convert
from millrace_registry.app import RegistryApp
from millrace_registry.domain import LineageEdge, LineageNode
from millrace_runtime.bus import PoisonFact, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.outbox import Outbox

_KINDS = {
    "versions": "version",
    "files": "file",
    "datasets": "dataset",
    "compressions": "compression",
}


class FactRecorder:
    """Puts facts into the outbox, in the transaction of the state that they follow from."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(
        self, connection: Connection, tenant: str, fact: Message, traceparent: str
    ) -> None:
        self._outbox.record(connection, tenant, fact, traceparent=traceparent)


class Facts:
    """A handler for each fact."""

    def __init__(self, app: RegistryApp) -> None:
        self._app = app

    def subscriptions(self) -> Sequence[Subscription]:
        return (
            Subscription(data_events.DatasetReady, self.dataset_ready),
            Subscription(trainer_events.RunStarted, self.run_started),
            Subscription(trainer_events.CheckpointFinished, self.trained),
            Subscription(tuner_events.JobStarted, self.job_started),
            Subscription(tuner_events.CheckpointFinished, self.tuned),
            Subscription(compressor_events.ArtifactFinished, self.artifact_finished),
        )

    def dataset_ready(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, data_events.DatasetReady)
        self._app.learn([LineageNode(fact.dataset, "dataset", fact.content.digest)], [])

    def run_started(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, trainer_events.RunStarted)
        nodes = [
            LineageNode(fact.dataset, "dataset", fact.dataset_digest),
            LineageNode(fact.run, "run"),
        ]
        self._app.learn(nodes, [LineageEdge(fact.dataset, fact.run)])

    def trained(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, trainer_events.CheckpointFinished)
        nodes = [
            LineageNode(fact.run, "run"),
            LineageNode(fact.checkpoint, "checkpoint", fact.content.digest),
        ]
        edges = [LineageEdge(fact.run, fact.checkpoint)]
        self._app.learn(nodes, edges, {fact.checkpoint: event.time})

    def job_started(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, tuner_events.JobStarted)
        taught, edges = _teaching(fact.companions, fact.job)
        nodes = [named(fact.base_version), *taught, LineageNode(fact.job, "job")]
        edges.append(LineageEdge(fact.base_version, fact.job))
        if fact.training_file:  # tuners of before did not say
            nodes.append(named(fact.training_file))
            edges.append(LineageEdge(fact.training_file, fact.job))
        self._app.learn(nodes, edges)

    def tuned(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, tuner_events.CheckpointFinished)
        taught, taught_edges = _teaching(fact.companions, fact.job)
        nodes = [
            named(fact.base_version),
            *taught,
            # Of a directory the digest is that of the member that was read, and not its own.
            named(fact.training_file, fact.training_file_digest),
            LineageNode(fact.job, "job"),
            LineageNode(fact.checkpoint, "checkpoint", fact.content.digest),
        ]
        edges = [
            *taught_edges,
            LineageEdge(fact.base_version, fact.job),
            LineageEdge(fact.training_file, fact.job),
            LineageEdge(fact.job, fact.checkpoint),
        ]
        self._app.learn(nodes, edges, {fact.checkpoint: event.time})

    def artifact_finished(self, event: Event) -> None:
        fact = event.message
        assert isinstance(fact, compressor_events.ArtifactFinished)
        if not convert.is_known_target(convert.target_of(fact)):
            # A target that is not known is read as none at all (``cloudevent.from_json``).
            raise PoisonFact(
                f"{fact.compression} is for a target that this registry does not know: upgrade "
                "it, and it finds the artifact by itself"
            )
        self._app.artifact_finished(
            event.tenant,
            compression=fact.compression,
            target=convert.target_name(convert.target_of(fact)),
            artifact=convert.content_from_proto(fact.artifact),
            checkpoint=convert.document_of(fact.checkpoint),
            measurements=convert.document_of(fact.measurements),
            base_model=base_model_of(fact.checkpoint.model),
            traceparent=event.traceparent,
            is_by_hand=not fact.deployment,
            compress_start_time=convert.moment_of(fact, "start_time"),
            compress_finish_time=convert.moment_of(fact, "finish_time"),
        )


def named(name: str, file_digest: str = "") -> LineageNode:
    """What a job was given: a version or a file; else a dataset, or what a compression has pruned.

    ``file_digest`` is that of a file alone.
    """
    collection = name.rpartition("/")[0].rpartition("/")[2]
    kind = _KINDS.get(collection, collection.removesuffix("s"))  # a newer tuner may name others
    return LineageNode(name, kind, file_digest if kind == "file" else "")


def _teaching(companions: Sequence[str], job: str) -> tuple[list[LineageNode], list[LineageEdge]]:
    """Teachers, reward models and judges lead to the job as its base does.

    Of a reward model's checkpoint no fact tells, since it is not served: it is of its job.
    """
    nodes: list[LineageNode] = []
    edges: list[LineageEdge] = []
    for companion in companions:
        nodes.append(named(companion))
        edges.append(LineageEdge(companion, job))
        maker, _, is_checkpoint = companion.partition("/checkpoints/")
        if is_checkpoint:
            nodes.append(named(maker))
            edges.append(LineageEdge(maker, companion))
    return nodes, edges


def base_model_of(model: str) -> str:
    """The model that ``ft:demo:acme:docs:k3x9`` was tuned from; empty for a pre-trained one."""
    return model.split(":")[1] if model.startswith("ft:") else ""


def subscriptions(app: RegistryApp) -> Sequence[Subscription]:
    return Facts(app).subscriptions()
