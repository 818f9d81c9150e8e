"""The facts that this service publishes. It consumes none."""

from collections.abc import Sequence

from sqlalchemy import Connection

from millrace_data.convert import fact_to_proto
from millrace_data.domain import Fact, FileUploaded
from millrace_runtime.bus import Subscription
from millrace_runtime.outbox import Outbox

SUBSCRIPTIONS: Sequence[Subscription] = ()


class FactRecorder:
    """Puts facts into the outbox, in the transaction of the state that they follow from."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, connection: Connection, fact: Fact, traceparent: str) -> None:
        resource = fact.file if isinstance(fact, FileUploaded) else fact.dataset
        self._outbox.record(
            connection, resource.tenant, fact_to_proto(fact), traceparent=traceparent
        )
