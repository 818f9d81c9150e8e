"""Who publishes each fact and who consumes it: the event flow of the mesh, in one table.

The AsyncAPI document and the diagram in ARCHITECTURE.md are generated from here, and a test
holds it against the services' real subscribers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message

from millrace.compressor.v1 import events_pb2 as compressor
from millrace.data.v1 import events_pb2 as data
from millrace.gateway.v1 import events_pb2 as gateway
from millrace.registry.v1 import events_pb2 as registry
from millrace.trainer.v1 import events_pb2 as trainer
from millrace.tuner.v1 import events_pb2 as tuner

STREAM = "MILLRACE"
STREAM_SUBJECTS = ("millrace.>",)
DEAD_LETTER_STREAM = "MILLRACE_DEAD_LETTERS"
DEAD_LETTER_SUBJECTS = ("dead.millrace.>",)
REPLAY_STREAM = "MILLRACE_REPLAYS"
REPLAY_SUBJECTS = ("replay.>",)

STAGES = ("data", "trainer", "tuner", "compressor", "registry", "gateway")


@dataclass(frozen=True)
class Fact:
    """One kind of fact.

    Attributes:
        fact: ``<resource>.<past tense>``, the end of its subject.
        producer: stage that publishes it.
        message: its data, a protobuf message; the message's full name is the CloudEvents type.
        consumers: stages that act on it (people, the gateway's event stream and webhooks read all).
    """

    fact: str
    producer: str
    message: type[Message]
    consumers: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """CloudEvents ``type``: the full name of the message."""
        return str(self.message.DESCRIPTOR.full_name)

    def subject(self, tenant: str) -> str:
        """NATS subject; ``*`` as the tenant subscribes to every tenant's."""
        return f"millrace.{tenant}.{self.producer}.{self.fact}"


FACTS: tuple[Fact, ...] = (
    Fact("file.uploaded", "data", data.FileUploaded),
    Fact("dataset.ready", "data", data.DatasetReady, consumers=("trainer", "registry")),
    Fact("dataset.failed", "data", data.DatasetFailed, consumers=("trainer",)),
    Fact("run.started", "trainer", trainer.RunStarted, consumers=("registry", "compressor")),
    Fact("run.succeeded", "trainer", trainer.RunSucceeded),
    Fact("run.failed", "trainer", trainer.RunFailed),
    Fact("run.cancelled", "trainer", trainer.RunCancelled),
    Fact(
        "checkpoint.finished",
        "trainer",
        trainer.CheckpointFinished,
        consumers=("compressor", "registry"),
    ),
    Fact("job.started", "tuner", tuner.JobStarted, consumers=("registry", "compressor")),
    Fact("job.succeeded", "tuner", tuner.JobSucceeded),
    Fact("job.failed", "tuner", tuner.JobFailed),
    Fact("job.cancelled", "tuner", tuner.JobCancelled),
    Fact(
        "checkpoint.finished",
        "tuner",
        tuner.CheckpointFinished,
        consumers=("compressor", "registry"),
    ),
    Fact("artifact.finished", "compressor", compressor.ArtifactFinished, consumers=("registry",)),
    Fact(
        "compression.rejected",
        "compressor",
        compressor.CompressionRejected,
        consumers=("tuner",),
    ),
    Fact("compression.failed", "compressor", compressor.CompressionFailed, consumers=("tuner",)),
    Fact("version.registered", "registry", registry.VersionRegistered),
    Fact("version.quarantined", "registry", registry.VersionQuarantined),
    Fact("version.recalled", "registry", registry.VersionRecalled),
    Fact("version.released", "registry", registry.VersionReleased),
    Fact("recall.extended", "registry", registry.RecallExtended),
    Fact("recall.lifted", "registry", registry.RecallLifted),
    Fact("rollout.started", "registry", registry.RolloutStarted),
    Fact("rollout.advanced", "registry", registry.RolloutAdvanced),
    Fact("rollout.paused", "registry", registry.RolloutPaused),
    Fact("rollout.resumed", "registry", registry.RolloutResumed),
    Fact("rollout.settled", "registry", registry.RolloutSettled, consumers=("tuner",)),
    Fact("rollout.reversed", "registry", registry.RolloutReversed, consumers=("tuner",)),
    Fact("key.created", "gateway", gateway.KeyCreated),
    Fact("key.updated", "gateway", gateway.KeyUpdated),
    Fact("key.revoked", "gateway", gateway.KeyRevoked),
    Fact("batch.created", "gateway", gateway.BatchCreated),
    Fact("batch.completed", "gateway", gateway.BatchCompleted),
    Fact("batch.failed", "gateway", gateway.BatchFailed),
    Fact("batch.cancelled", "gateway", gateway.BatchCancelled),
    Fact("batch.expired", "gateway", gateway.BatchExpired),
)

_BY_TYPE = {fact.type: fact for fact in FACTS}


def fact_of(message: type[Message] | str) -> Fact:
    """The fact whose data is ``message`` (a message class or a CloudEvents type).

    Raises:
        KeyError: no fact has that message.
    """
    name = message if isinstance(message, str) else str(message.DESCRIPTOR.full_name)
    return _BY_TYPE[name]


def consumed_by(stage: str) -> tuple[Fact, ...]:
    """The facts that a stage must subscribe to."""
    return tuple(fact for fact in FACTS if stage in fact.consumers)


def produced_by(stage: str) -> tuple[Fact, ...]:
    """The facts that a stage publishes."""
    return tuple(fact for fact in FACTS if fact.producer == stage)


def edges() -> Iterable[tuple[str, str, str]]:
    """(producer, fact, consumer) for every hop between services."""
    for fact in FACTS:
        for consumer in fact.consumers:
            yield fact.producer, fact.fact, consumer
