"""The relay: publishes what is in the outbox, and all of it again when the stream lost some."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from opentelemetry.trace import SpanKind
from prometheus_client import Gauge

from millrace.topology import STREAM
from millrace_runtime import cloudevent, telemetry
from millrace_runtime.bus import RETRY_DELAY_SECONDS, ensure_streams
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox, PendingFact

LOG = logging.getLogger(__name__)

_IDLE_POLL_SECONDS = 1.0

_PENDING = Gauge(
    "millrace_outbox_pending_facts",
    "Facts recorded and not yet published, as last read (one batch at most).",
)


class Relay:
    """Publishes the outbox: each fact with its id as ``Nats-Msg-Id``, in order.

    A stream that was made anew, or that has lost messages (its last sequence went back), is
    another incarnation, and the whole history is published into it.
    """

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox
        self._doorbell = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._highest_sequence = 0
        self._created = ""
        self._losses = 0

    def ring(self) -> None:
        """Say that facts were recorded. Callable from any thread; only speeds things up."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._doorbell.set)

    async def run(self, client: Client) -> None:
        """Publish for ever; errors of the bus are logged and tried again."""
        self._loop = asyncio.get_running_loop()
        jetstream = client.jetstream()
        while True:
            self._doorbell.clear()
            try:
                published = await self._publish_batch(jetstream)
            except (TimeoutError, nats.errors.Error, OSError) as error:
                LOG.warning("publishing is delayed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_DELAY_SECONDS)
                continue
            if not published:
                await self._wait_for_ring()

    async def _wait_for_ring(self) -> None:
        try:
            await asyncio.wait_for(self._doorbell.wait(), _IDLE_POLL_SECONDS)
        except TimeoutError:
            return

    async def _publish_batch(self, jetstream: JetStreamContext) -> int:
        incarnation = await self._incarnation(jetstream)
        facts = await asyncio.to_thread(self._read_pending, incarnation)
        _PENDING.set(len(facts))
        if not facts:
            return 0
        for fact in facts:
            with telemetry.span(
                f"publish {fact.subject}",
                traceparent=fact.traceparent,
                kind=SpanKind.PRODUCER,
                attributes={
                    "messaging.system": "nats",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": fact.subject,
                    "messaging.message.id": fact.id,
                },
            ):
                ack = await jetstream.publish(
                    fact.subject, fact.document.encode(), headers=_headers(fact), stream=STREAM
                )
            self._highest_sequence = max(self._highest_sequence, ack.seq)
        await asyncio.to_thread(self._mark_published, facts, incarnation)
        return len(facts)

    def _read_pending(self, incarnation: str) -> Sequence[PendingFact]:
        with self._database.transaction() as connection:
            return self._outbox.pending(connection, incarnation)

    def _mark_published(self, facts: Sequence[PendingFact], incarnation: str) -> None:
        with self._database.transaction() as connection:
            self._outbox.mark_published(connection, facts, incarnation)

    async def _incarnation(self, jetstream: JetStreamContext) -> str:
        """Identity of the stream's present life."""
        try:
            info = await jetstream.stream_info(STREAM)
        except NotFoundError:
            await ensure_streams(jetstream)
            info = await jetstream.stream_info(STREAM)
        created = str(info.created)
        if created == self._created and info.state.last_seq < self._highest_sequence:
            self._losses += 1
            LOG.error("the stream has lost messages; publishing the whole history again")
        self._created, self._highest_sequence = created, info.state.last_seq
        return f"{created}/{self._losses}" if self._losses else created


def _headers(fact: PendingFact) -> dict[str, Any]:
    headers = {"Nats-Msg-Id": fact.id, "Content-Type": cloudevent.CONTENT_TYPE}
    if fact.traceparent:
        headers["traceparent"] = fact.traceparent
    return headers
