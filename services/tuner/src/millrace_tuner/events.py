"""What the tuner does about each fact it consumes, and how it publishes its own."""

from collections.abc import Sequence

from sqlalchemy import Connection

from millrace.compressor.v1 import events_pb2 as compressor
from millrace.registry.v1 import events_pb2 as registry
from millrace_runtime import telemetry
from millrace_runtime.bus import Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.outbox import Outbox
from millrace_tuner import convert
from millrace_tuner.app import TunerApp
from millrace_tuner.domain import Fact


class FactRecorder:
    """Puts facts into the outbox, in the transaction of the state that they follow from.

    A fact belongs to the trace of what is going on; where nothing is traced, to the job's.

    A fact goes into the trace of what is going on; where nothing is traced, into the job's.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, connection: Connection, fact: Fact) -> None:
        traceparent = telemetry.current_traceparent() or fact.job.traceparent
        message = convert.fact_to_proto(fact)
        self._outbox.record(connection, fact.job.tenant, message, traceparent=traceparent)


class Listener:
    """Follows the final checkpoints of jobs on their road to serving.

    Facts about other checkpoints (training runs', earlier ones) change nothing.
    """

    def __init__(self, app: TunerApp) -> None:
        self._app = app

    def subscriptions(self) -> Sequence[Subscription]:
        return (
            Subscription(registry.RolloutSettled, self.on_rollout_settled),
            Subscription(registry.RolloutReversed, self.on_rollout_reversed),
            Subscription(compressor.CompressionRejected, self.on_compression_ended),
            Subscription(compressor.CompressionFailed, self.on_compression_ended),
        )

    def on_rollout_settled(self, event: Event) -> None:
        assert isinstance(event.message, registry.RolloutSettled)
        if convert.is_own_checkpoint(event.message.checkpoint):
            self._app.settled(*convert.checkpoint_key(event.message.checkpoint))

    def on_rollout_reversed(self, event: Event) -> None:
        assert isinstance(event.message, registry.RolloutReversed)
        self._follow(event.message.checkpoint)

    def on_compression_ended(self, event: Event) -> None:
        assert isinstance(
            event.message, compressor.CompressionRejected | compressor.CompressionFailed
        )
        self._follow(event.message.checkpoint.name)

    def _follow(self, checkpoint: str) -> None:
        if convert.is_own_checkpoint(checkpoint):
            self._app.follow(*convert.checkpoint_key(checkpoint))
