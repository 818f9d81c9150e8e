"""NATS JetStream: the doorbell. The relay (``relay.py``) rings it, subscribers answer.

What is acknowledged here is already safe in a database (``outbox.py``), and what is consumed
is recorded there under a natural key before it is acknowledged. So a lost stream, a message
delivered twice and a server that is away for an hour all lead to the same end state.

    PoisonFact        raised by a handler: this fact can never be handled; dead-letter it now
    HandlingTimeout   a handler took too long; the fact is tried again, as after any failure
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
from nats.js.errors import BadRequestError, NotFoundError, ServerError
from opentelemetry.trace import SpanKind
from prometheus_client import Counter
from sqlalchemy.exc import OperationalError

from millrace.topology import REPLAY_STREAM, STREAM, STREAM_SUBJECTS, fact_of
from millrace_runtime import cloudevent, dead_letters, storage, telemetry
from millrace_runtime.cloudevent import Event, MalformedEvent
from millrace_runtime.connection import Connection
from millrace_runtime.dead_letters import DeadLetters
from millrace_runtime.errors import Unavailable

LOG = logging.getLogger(__name__)

# What was on its way when the server died is given again only after this; what is being handled
# is kept (`_keep`).
ACK_WAIT_SECONDS = 5.0
HANDLING_SECONDS = 30.0
MAXIMUM_DELIVERIES = 8
OUTAGE_DELIVERIES = 450  # with their delays about an hour
RETRY_DELAY_SECONDS = 1.0
DUPLICATE_WINDOW_SECONDS = 120.0
_FETCH_TIMEOUT_SECONDS = 5.0
_FETCH_BATCH = 32
# Error codes of nats-server.
_STREAM_IS_OFFLINE = 10194
_NAME_IS_TAKEN = 10058
# A letter's headers come on top of the payload, and the server limits both together.
_HEADERS_BYTES = 8192

_REFUSED = Counter("millrace_dead_letters_total", "Facts that became dead letters.")


class PoisonFact(Exception):
    """This fact can never be handled, however often it is delivered."""


class HandlingTimeout(Exception):
    """A handler took too long, and was left to itself."""


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


def stream_configs() -> Sequence[StreamConfig]:
    """What the streams must be like: the facts', the dead letters' and their replays'."""
    facts = StreamConfig(
        name=STREAM,
        subjects=list(STREAM_SUBJECTS),
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
    )
    return (facts, *dead_letters.stream_configs())


async def ensure_streams(jetstream: JetStreamContext) -> None:
    """Make the streams where they are missing; one letter a subject, also in an old stream."""
    for config in stream_configs():
        try:
            found = (await jetstream.stream_info(str(config.name))).config
        except NotFoundError:
            await _make_stream(jetstream, config)
            continue
        except ServerError as error:
            if config.name != STREAM or error.err_code != _STREAM_IS_OFFLINE:
                raise
            # A damaged consumer takes its stream with it, for good. The facts lie in the
            # outboxes, and relays publish them into the stream that takes its place.
            LOG.error("the stream cannot be served: %s", error)
            await make_anew(jetstream)
            continue
        if found.max_msgs_per_subject != config.max_msgs_per_subject:
            await jetstream.update_stream(found, max_msgs_per_subject=config.max_msgs_per_subject)


async def make_anew(jetstream: JetStreamContext) -> None:
    """Delete the facts' stream and make it: each relay then publishes its whole history."""
    LOG.error("the stream is made anew")
    await jetstream.delete_stream(STREAM)
    await ensure_streams(jetstream)


async def _make_stream(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except BadRequestError as error:
        if error.err_code != _NAME_IS_TAKEN:
            raise
        return  # somebody else was quicker
    # Only a change makes the server write the description of a stream whose old one was
    # damaged; until then it calls itself unhealthy, also after a restart.
    await jetstream.update_stream(config, description="Millrace")


@dataclass(frozen=True)
class _Source:
    """A stream and the durable consumer through which a stage takes what concerns it."""

    stream: str
    config: ConsumerConfig

    @property
    def consumer(self) -> str:
        return str(self.config.durable_name)


class Consumer:
    """One stage's subscriptions, through one durable pull consumer, and one for replays.

    No fact keeps another waiting for longer than ``handling_seconds``. One whose handler
    fails comes again later, up to ``MAXIMUM_DELIVERIES`` times, and then is a dead letter;
    when not the fact but what the handler needs is at fault, it waits for that, about an hour.
    """

    def __init__(
        self,
        stage: str,
        subscriptions: Sequence[Subscription],
        *,
        handling_seconds: float = HANDLING_SECONDS,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stage = stage
        self._handlers = {fact_of(s.message).type: s.handle for s in subscriptions}
        self._subjects = [fact_of(s.message).subject("*") for s in subscriptions]
        self._handling_seconds = handling_seconds
        self._ack_wait_seconds = ack_wait_seconds
        self._now = now

    async def run(self, client: Client) -> None:
        """Consume for ever; a stream or consumer that has gone is made again."""
        if not self._handlers:
            return
        replays = [f"replay.{self._stage}.>"]
        sources = (
            _Source(STREAM, self._config(self._subjects)),
            _Source(REPLAY_STREAM, self._config(replays)),
        )
        await asyncio.gather(*(self._run(client, source) for source in sources))

    def _config(self, subjects: Sequence[str]) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=self._stage,
            filter_subjects=list(subjects),
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=self._ack_wait_seconds,
            max_deliver=-1,  # redelivery ends silently on the server; we count, and dead-letter
        )

    async def _run(self, client: Client, source: _Source) -> None:
        while True:
            try:
                await self._consume(client, source)
            except Exception as error:  # whatever it is, the consumer must outlive it
                LOG.warning("consuming is delayed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_DELAY_SECONDS)

    async def _consume(self, client: Client, source: _Source) -> None:
        connection = Connection(client)
        jetstream = connection.jetstream
        await connection.until_connected()
        await ensure_streams(jetstream)
        await jetstream.add_consumer(source.stream, source.config)
        subscription = await jetstream.pull_subscribe_bind(
            durable=source.consumer, stream=source.stream
        )
        try:
            while True:
                _heed_cancellation()
                fetch = subscription.fetch(_FETCH_BATCH, timeout=_FETCH_TIMEOUT_SECONDS)
                try:
                    messages = await connection.unbroken(fetch)
                except TimeoutError:
                    # Raises when it has gone.
                    await jetstream.consumer_info(source.stream, source.consumer)
                    continue
                await self._deliver_all(client, messages)
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _deliver_all(self, client: Client, messages: Sequence[Msg]) -> None:
        """Handle what was fetched, in order; what waits for its turn is not given to others."""
        waiting = deque(messages)
        keeper = asyncio.create_task(self._keep(waiting))
        try:
            while waiting:
                await self._deliver(client, waiting[0])
                waiting.popleft()
        finally:
            keeper.cancel()

    async def _keep(self, waiting: deque[Msg]) -> None:
        """Say that the messages are still being worked on, before the server gives them up."""
        while True:
            await asyncio.sleep(self._ack_wait_seconds / 3)
            for message in tuple(waiting):
                if not message.is_acked:
                    with suppress(nats.errors.Error, OSError):
                        await message.in_progress()

    async def _deliver(self, client: Client, message: Msg) -> None:
        try:
            await self._handle_in_time(cloudevent.from_json(message.data))
        except (MalformedEvent, PoisonFact) as error:
            await self._refuse(client, message, error)
        except Exception as error:  # the consumer must outlive any one fact's handler
            deliveries = message.metadata.num_delivered
            LOG.exception("handling %s failed (delivery %d)", message.subject, deliveries)
            if deliveries >= _most_deliveries(error):
                await self._refuse(client, message, error)
            else:
                await message.nak(delay=RETRY_DELAY_SECONDS * min(deliveries, MAXIMUM_DELIVERIES))
        else:
            if _is_replay(message):
                await DeadLetters(client.jetstream()).settle(message.subject)
            await message.ack()

    async def _handle_in_time(self, event: Event) -> None:
        """
        Raises:
            HandlingTimeout: the handler, which may still be running, was left to itself.
        """
        handling = asyncio.ensure_future(asyncio.to_thread(self._handle, event))
        await asyncio.wait({handling}, timeout=self._handling_seconds)
        if not handling.done():
            handling.add_done_callback(_log_late)
            raise HandlingTimeout(f"not handled within {self._handling_seconds:g} s")
        handling.result()

    def _handle(self, event: Event) -> None:
        handle = self._handlers.get(event.fact.type)
        if handle is None:
            raise PoisonFact(f"{event.fact.type} is no fact that {self._stage} consumes")
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
            handle(event)

    async def _refuse(self, client: Client, message: Msg, error: Exception) -> None:
        """Make the fact a dead letter; once that is stored, it is not delivered again."""
        LOG.error("dead letter from %s: %s", message.subject, error)
        letter = dead_letters.refused(
            self._stage, _fact_subject(message), message.data, error, self._now()
        )
        # What came as a replay is the letter that it was, whatever can be read in it.
        identifier = message.subject.rsplit(".", 1)[-1] if _is_replay(message) else letter.id
        letter = replace(
            letter,
            id=identifier,
            deliveries=message.metadata.num_delivered,
            payload=letter.payload[: client.max_payload - _HEADERS_BYTES],
        )
        await DeadLetters(client.jetstream()).keep(letter)
        _REFUSED.inc()
        # Acknowledged, so that a replay leaves its stream.
        await message.ack()


def _heed_cancellation() -> None:
    """End the task if it was asked to, though the client has swallowed that.

    The client waits with ``asyncio.wait_for``, which until Python 3.12 returns a result that
    comes at the same moment as the cancellation, and forgets the latter (cpython issue 86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _is_replay(message: Msg) -> bool:
    return message.metadata.stream == REPLAY_STREAM


def _fact_subject(message: Msg) -> str:
    return dead_letters.fact_subject(message.subject) if _is_replay(message) else message.subject


def _most_deliveries(error: Exception) -> float:
    """How often a fact that fails so is tried."""
    if storage.reason_of(error) is not None:
        return math.inf  # a full disk is no fault of the fact's: it waits until there is room
    if isinstance(error, Unavailable | OperationalError | ConnectionError):
        return OUTAGE_DELIVERIES
    return MAXIMUM_DELIVERIES


def _log_late(handling: asyncio.Future[None]) -> None:
    error = None if handling.cancelled() else handling.exception()
    LOG.warning("a handler that was given up has ended: %s", error or "it succeeded")


async def _log_error(error: Exception) -> None:
    LOG.info("NATS connection: %s: %s", type(error).__name__, error)
