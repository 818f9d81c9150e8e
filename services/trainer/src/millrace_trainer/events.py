"""What the trainer does about the facts that it consumes, and the facts that it publishes."""

from collections.abc import Sequence

from sqlalchemy import Connection

from millrace.data.v1 import events_pb2
from millrace_runtime.bus import Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.outbox import Outbox
from millrace_trainer import convert
from millrace_trainer.app import TrainerApp
from millrace_trainer.domain import Fact


def subscriptions(app: TrainerApp) -> Sequence[Subscription]:
    """Runs wait for their dataset."""

    def dataset_ready(event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetReady)
        content = convert.content_from_proto(event.message.content)
        app.dataset_ready(event.message.dataset, content)

    def dataset_failed(event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetFailed)
        failure = convert.failure_from_proto(event.message.failure)
        app.dataset_failed(event.message.dataset, failure)

    return (
        Subscription(events_pb2.DatasetReady, dataset_ready),
        Subscription(events_pb2.DatasetFailed, dataset_failed),
    )


class FactRecorder:
    """Puts facts into the outbox, in the transaction of the state that they follow from."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, connection: Connection, fact: Fact, traceparent: str) -> None:
        self._outbox.record(
            connection,
            convert.tenant_of(fact),
            convert.fact_to_proto(fact),
            traceparent=traceparent,
        )
