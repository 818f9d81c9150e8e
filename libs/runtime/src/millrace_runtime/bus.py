"""NATS JetStream: the doorbell. The relay (``relay.py``) rings it, subscribers answer.

What is acknowledged here is already safe in a database (``outbox.py``), and what is consumed
is recorded there under a natural key before it is acknowledged. So a lost stream, a message
delivered twice and a server that is away for an hour all lead to the same end state.

    PoisonFact   raised by a handler: this fact can never be handled; dead-letter it now
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import nats
from google.protobuf.message import Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError
from opentelemetry.trace import SpanKind

from millrace.topology import (
    DEAD_LETTER_STREAM,
    DEAD_LETTER_SUBJECTS,
    STREAM,
    STREAM_SUBJECTS,
    fact_of,
)
from millrace_runtime import cloudevent, telemetry
from millrace_runtime.cloudevent import Event, MalformedEvent

LOG = logging.getLogger(__name__)

ACK_WAIT_SECONDS = 30.0
MAXIMUM_DELIVERIES = 8
RETRY_DELAY_SECONDS = 1.0
DUPLICATE_WINDOW_SECONDS = 120.0
_FETCH_TIMEOUT_SECONDS = 5.0
_FETCH_BATCH = 32


class PoisonFact(Exception):
    """This fact can never be handled, however often it is delivered."""


@dataclass(frozen=True)
class Subscription:
    """What a stage does about one kind of fact.

    Attributes:
        message: the fact's protobuf message class.
        handle: records what must be done, under a natural key, in one transaction. It runs in
            a thread, under a span of the fact's trace, and may be called again with the same
            event at any time.
    """

    message: type[Message]
    handle: Callable[[Event], None]


async def connect(url: str, name: str) -> Client:
    """Connect and stay connected: reconnects for ever, buffering nothing of ours."""
    return await nats.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,
        allow_reconnect=True,
        error_cb=_log_error,
        # The first connection too may be early: a service can start before its server.
        connect_timeout=2,
    )


async def connect_patiently(url: str, name: str) -> Client:
    """``connect``, tried until it succeeds."""
    while True:
        try:
            return await connect(url, name)
        except (OSError, nats.errors.Error) as error:
            LOG.info("NATS at %s is not there yet (%s); trying again", url, error)
            await asyncio.sleep(0.5)


async def ensure_streams(jetstream: JetStreamContext) -> None:
    """Make the two streams where they are missing."""
    for name, subjects in (
        (STREAM, STREAM_SUBJECTS),
        (DEAD_LETTER_STREAM, DEAD_LETTER_SUBJECTS),
    ):
        try:
            await jetstream.stream_info(name)
        except NotFoundError:
            await jetstream.add_stream(
                StreamConfig(
                    name=name,
                    subjects=list(subjects),
                    storage=StorageType.FILE,
                    retention=RetentionPolicy.LIMITS,
                    duplicate_window=DUPLICATE_WINDOW_SECONDS,
                )
            )


class Consumer:
    """One stage's subscriptions, through one durable pull consumer."""

    def __init__(self, stage: str, subscriptions: Sequence[Subscription]) -> None:
        self._stage = stage
        self._handlers = {fact_of(s.message).type: s.handle for s in subscriptions}
        self._subjects = [fact_of(s.message).subject("*") for s in subscriptions]

    async def run(self, client: Client) -> None:
        """Consume for ever; a stream or consumer that has gone is made again."""
        if not self._handlers:
            return
        while True:
            try:
                await self._consume(client.jetstream())
            except (TimeoutError, nats.errors.Error, OSError) as error:
                LOG.warning("consuming is delayed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def _consume(self, jetstream: JetStreamContext) -> None:
        await ensure_streams(jetstream)
        config = ConsumerConfig(
            durable_name=self._stage,
            filter_subjects=self._subjects,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=ACK_WAIT_SECONDS,
            max_deliver=-1,  # redelivery ends silently on the server; we count, and dead-letter
        )
        await jetstream.add_consumer(STREAM, config)
        subscription = await jetstream.pull_subscribe_bind(durable=self._stage, stream=STREAM)
        while True:
            try:
                messages = await subscription.fetch(_FETCH_BATCH, timeout=_FETCH_TIMEOUT_SECONDS)
            except TimeoutError:
                await jetstream.consumer_info(STREAM, self._stage)  # raises when it has gone
                continue
            for message in messages:
                await self._deliver(jetstream, message)

    async def _deliver(self, jetstream: JetStreamContext, message: Msg) -> None:
        try:
            event = cloudevent.from_json(message.data)
            await asyncio.to_thread(self._handle, event)
        except (MalformedEvent, PoisonFact) as error:
            await self._dead_letter(jetstream, message, str(error))
        except Exception as error:  # the consumer must outlive any one fact's handler
            deliveries = message.metadata.num_delivered
            LOG.exception("handling %s failed (delivery %d)", message.subject, deliveries)
            if deliveries >= MAXIMUM_DELIVERIES:
                await self._dead_letter(jetstream, message, f"{type(error).__name__}: {error}")
            else:
                await message.nak(delay=RETRY_DELAY_SECONDS * deliveries)
        else:
            await message.ack()

    def _handle(self, event: Event) -> None:
        with telemetry.span(
            f"process {event.subject}",
            traceparent=event.traceparent,
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "nats",
                "messaging.operation.type": "process",
                "messaging.destination.name": event.subject,
                "messaging.message.id": event.id,
                "messaging.consumer.group.name": self._stage,
                "millrace.event.age_seconds": (datetime.now(UTC) - event.time).total_seconds(),
            },
        ):
            self._handlers[event.fact.type](event)

    async def _dead_letter(self, jetstream: JetStreamContext, message: Msg, reason: str) -> None:
        LOG.error("dead letter from %s: %s", message.subject, reason)
        headers = {"Millrace-Reason": reason[:1000], "Millrace-Consumer": self._stage}
        headers["Nats-Msg-Id"] = f"{self._stage}-{message.metadata.sequence.stream}"
        await jetstream.publish(f"dead.{message.subject}", message.data, headers=headers)
        await message.term()


async def _log_error(error: Exception) -> None:
    LOG.info("NATS connection: %s: %s", type(error).__name__, error)
