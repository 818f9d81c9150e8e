"""The relay: publishes what is in the outbox, and again what the stream has lost.

Facts go out in bursts, each with its id as ``Nats-Msg-Id``, and are marked when the server has
acknowledged them all. A burst is one write on one connection: a connection that breaks cuts
off its end and never its middle, so that facts lie in the stream in the order of the outbox.

Four things undo what was acknowledged:

1. The stream was made anew. Its time of creation is its *incarnation*; what was published in
   another one is pending.
2. The stream was cut off, or replaced by an older copy of itself, while the server was away.
   After each connection, and when the stream's shape says that messages were removed, the
   audit (``audit.py``) reads back the ids, and what is not there is published again.
3. The server takes for a duplicate what it no longer has (it remembers ids for two minutes).
   What it calls a duplicate is looked up, and published under another message id if need be.
4. The server has cut off a damaged block, and until it is started again cannot give back what
   it takes (nats-server 2.15.1). A relay that finds this out has the stream made anew.

What is published again may come after what was published meanwhile: only a stream that has
lost nothing lies in the order of the outbox.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck, StreamInfo
from nats.js.errors import APIError
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Gauge

from millrace.topology import STREAM
from millrace_runtime import audit, backlog, cloudevent, telemetry
from millrace_runtime.audit import Audit
from millrace_runtime.bus import RETRY_DELAY_SECONDS, ensure_streams, make_anew
from millrace_runtime.connection import Connection
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox, PendingFact

LOG = logging.getLogger(__name__)

_IDLE_POLL_SECONDS = 1.0
_AUDIT_PERIOD_SECONDS = 3600.0
_ACK_TIMEOUT_SECONDS = 5.0
# The client writes what is published at once in one go, up to 2 MiB.
_BURST_BYTES = 1024 * 1024
_FOUND_AT_ONCE = 500

_PENDING = Gauge(
    "millrace_outbox_pending_facts",
    "Facts recorded and not yet published, as last read (one batch at most).",
)
_LOST = Counter(
    "millrace_stream_lost_facts_total",
    "Facts that were published again because the stream had lost them.",
)


class Relay:
    """Publishes one outbox. Several relays may publish the same one at the same time."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox
        self._audit = Audit(database, outbox)
        self._audit_is_due = asyncio.Event()
        self._batch = asyncio.Lock()  # held from before facts are sent until they are marked
        self._doorbell = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: tuple[object, ...] = ()

    def ring(self) -> None:
        """Say that facts were recorded. Callable from any thread; only speeds things up."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._doorbell.set)

    def measure(self) -> None:
        """Bring the metrics of what waits up to date; called when they are read."""
        backlog.measure(self._database, self._outbox)

    async def run(self, client: Client) -> None:
        """Publish for ever; errors of the bus and of the database are logged and tried again."""
        self._loop = asyncio.get_running_loop()
        connection = Connection(client)
        await asyncio.gather(self._publish_for_ever(connection), self._audit_for_ever(connection))

    async def _publish_for_ever(self, connection: Connection) -> None:
        while True:
            await connection.until_connected()
            self._doorbell.clear()
            try:
                published = await self._publish_batch(connection)
            except Exception as error:  # a full disk too: the relay must outlive it
                LOG.warning("publishing is delayed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_DELAY_SECONDS)
                continue
            if not published:
                await self._wait_for_ring()

    async def _audit_for_ever(self, connection: Connection) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_AUDIT_PERIOD_SECONDS):
                    await self._audit_is_due.wait()
            try:
                await self._audit_once(connection)
            except Exception as error:  # as above
                LOG.warning("the audit is delayed: %s: %s", type(error).__name__, error)
                self._audit_is_due.set()
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def _audit_once(self, connection: Connection) -> None:
        jetstream = connection.jetstream
        await connection.unbroken(ensure_streams(jetstream))
        # What was acknowledged before a loss must be marked before it is looked for.
        async with self._batch:
            incarnation = await self._look(connection)
            self._audit_is_due.clear()
        lost = await connection.unbroken(self._audit.missing(jetstream, incarnation))
        if lost:
            LOG.error("the stream has lost %d facts; they are published again", len(lost))
            _LOST.inc(len(lost))
            await self._publish_again(connection, lost)

    async def _publish_again(self, connection: Connection, ids: Sequence[str]) -> None:
        jetstream = connection.jetstream
        for start in range(0, len(ids), _FOUND_AT_ONCE):
            facts = await asyncio.to_thread(self._find, ids[start : start + _FOUND_AT_ONCE])
            for burst in _bursts(facts):
                last = (await connection.unbroken(_publish(jetstream, burst)))[-1]
                held = audit.holds(jetstream, burst[-1].id, last.seq)
                if not await connection.unbroken(held):
                    await connection.unbroken(make_anew(jetstream))
                    return

    async def _wait_for_ring(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_POLL_SECONDS):
                await self._doorbell.wait()

    async def _publish_batch(self, connection: Connection) -> int:
        async with self._batch:
            incarnation = await self._look(connection)
            facts = await asyncio.to_thread(self._read_pending, incarnation)
            _PENDING.set(len(facts))
            for burst in _bursts(facts):
                await connection.unbroken(_publish(connection.jetstream, burst))
                await asyncio.to_thread(self._mark_published, burst, incarnation)
        return len(facts)

    def _read_pending(self, incarnation: str) -> Sequence[PendingFact]:
        with self._database.transaction() as transaction:
            return self._outbox.pending(transaction, incarnation)

    def _find(self, ids: Sequence[str]) -> Sequence[PendingFact]:
        with self._database.transaction() as transaction:
            return self._outbox.find(transaction, ids)

    def _mark_published(self, facts: Sequence[PendingFact], incarnation: str) -> None:
        with self._database.transaction() as transaction:
            self._outbox.mark_published(transaction, facts, incarnation)

    async def _look(self, connection: Connection) -> str:
        """The stream's incarnation. An audit is due when messages may have been removed."""
        life = connection.life
        info = await connection.unbroken(_stream_info(connection.jetstream))
        created = str(info.created)
        seen = (life, created, info.state.first_seq, info.state.num_deleted)
        if seen != self._seen:
            self._seen = seen
            self._audit_is_due.set()
        return created


async def _stream_info(jetstream: JetStreamContext) -> StreamInfo:
    try:
        return await jetstream.stream_info(STREAM)
    except APIError:  # it is not there, or cannot be served as it is
        await ensure_streams(jetstream)
        return await jetstream.stream_info(STREAM)


def _bursts(facts: Sequence[PendingFact]) -> Iterator[Sequence[PendingFact]]:
    burst: list[PendingFact] = []
    size = 0
    for fact in facts:
        size += len(fact.document)
        if burst and size > _BURST_BYTES:
            yield burst
            burst, size = [], len(fact.document)
        burst.append(fact)
    if burst:
        yield burst


async def _publish(jetstream: JetStreamContext, facts: Sequence[PendingFact]) -> Sequence[PubAck]:
    sent: list[asyncio.Future[PubAck]] = []
    try:
        # Nothing waits here before all are handed over: they leave in one write.
        for fact in facts:
            sent.append(await _send(jetstream, fact, fact.id))
        async with asyncio.timeout(_ACK_TIMEOUT_SECONDS):
            acknowledgements = await asyncio.gather(*sent)
    finally:
        for each in sent:
            each.cancel()
    pairs = zip(facts, acknowledgements, strict=True)
    return [await _settle(jetstream, fact, acknowledgement) for fact, acknowledgement in pairs]


async def _settle(jetstream: JetStreamContext, fact: PendingFact, answer: PubAck) -> PubAck:
    """Publish again what the server only takes for a duplicate."""
    if not answer.duplicate or await audit.holds(jetstream, fact.id, answer.seq):
        return answer
    another = await _send(jetstream, fact, audit.another_message_id(fact.id))
    async with asyncio.timeout(_ACK_TIMEOUT_SECONDS):
        return await another


async def _send(
    jetstream: JetStreamContext, fact: PendingFact, message_id: str
) -> asyncio.Future[PubAck]:
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
        return await jetstream.publish_async(
            fact.subject,
            fact.document.encode(),
            headers=_headers(fact, message_id),
            stream=STREAM,
        )


def _headers(fact: PendingFact, message_id: str) -> dict[str, Any]:
    headers = {audit.MESSAGE_ID: message_id, "Content-Type": cloudevent.CONTENT_TYPE}
    if fact.traceparent:
        headers["traceparent"] = fact.traceparent
    return headers
