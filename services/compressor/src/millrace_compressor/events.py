"""What the compressor does about the facts that it consumes, and the facts that it publishes."""

from collections.abc import Sequence

from sqlalchemy import Connection

from millrace.trainer.v1 import events_pb2 as trainer_events_pb2
from millrace.tuner.v1 import events_pb2 as tuner_events_pb2
from millrace_compressor import convert
from millrace_compressor.app import CompressorApp
from millrace_compressor.domain import Compression
from millrace_runtime.bus import Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.outbox import Outbox

CONSUMED = (trainer_events_pb2.CheckpointFinished, tuner_events_pb2.CheckpointFinished)
HERALDS = (trainer_events_pb2.RunStarted, tuner_events_pb2.JobStarted)


def subscriptions(app: CompressorApp) -> Sequence[Subscription]:
    """A finished checkpoint, of a run or of a tuning job, is compressed."""

    def checkpoint_finished(event: Event) -> None:
        assert isinstance(event.message, CONSUMED)
        checkpoint = convert.checkpoint_of_fact(event.message)
        app.checkpoint_finished(event.tenant, checkpoint, event.time)

    def training_started(event: Event) -> None:
        app.training_started()

    return (
        *(Subscription(message, checkpoint_finished) for message in CONSUMED),
        *(Subscription(message, training_started) for message in HERALDS),
    )


class FactRecorder:
    """Puts facts into the outbox, in the transaction of the state that they follow from."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, connection: Connection, compression: Compression) -> None:
        self._outbox.record(
            connection,
            compression.tenant,
            convert.fact_of(compression),
            traceparent=compression.traceparent,
        )
