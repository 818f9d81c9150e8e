"""The history of facts, read again from JetStream: from the beginning, or from after one fact.

A position is a fact's id, never a stream's sequence: a stream that was made anew counts from
one again, and the ids stay. An id holds the time of its making, so the search for it begins
there.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from millrace.topology import STREAM
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument, Unavailable

_BATCH = 256
_CLOCK_SKEW = timedelta(seconds=60)
_CONSUMER_FORGOTTEN_SECONDS = 60.0
_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Selection:
    """Which facts are wanted.

    Attributes:
        tenant: whose; always one.
        stages: their producers; empty for all.
        facts: ``<resource>.<past tense>``; empty for all.
    """

    tenant: str
    stages: frozenset[str] = frozenset()
    facts: frozenset[str] = frozenset()

    @property
    def subject(self) -> str:
        """What the server filters by; ``wants`` does the rest."""
        stage = next(iter(self.stages)) if len(self.stages) == 1 else "*"
        fact = next(iter(self.facts)) if len(self.facts) == 1 else ">"
        return f"millrace.{self.tenant}.{stage}.{fact}"

    def wants(self, subject: str) -> bool:
        _, _, stage, fact = subject.split(".", 3)
        return (not self.stages or stage in self.stages) and (not self.facts or fact in self.facts)


@dataclass(frozen=True)
class Record:
    """One fact as it was published. ``document`` is the CloudEvent in JSON, one line."""

    id: str
    kind: str
    document: str


@dataclass(frozen=True)
class Position:
    """After the fact with this id, which was made at this time."""

    id: str
    time: datetime


def position(fact_id: str) -> Position:
    """The position after a fact.

    Raises:
        InvalidArgument: ``fact_id`` is none of ours.
    """
    try:
        seconds = names.id_time_seconds(fact_id)
        return Position(fact_id, datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        raise InvalidArgument(
            f"{fact_id!r} is no event's id; leave it out to start at the beginning",
            field="last_event_id",
        ) from None


class History:
    """Reads the stream with consumers of its own, which the server forgets soon after."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._client: Client | None = None
        self.attached = asyncio.Event()

    def attach(self, client: Client) -> None:
        """Say through which connection to read, once there is one."""
        self._client = client
        self.attached.set()

    def read(
        self, selection: Selection, after: Position | None, follow: bool
    ) -> AsyncIterator[Record | None]:
        """The selected facts in the order of the stream, then, if ``follow``, new ones as they
        come, with a None after each silence of ``heartbeat_seconds``.

        When the position's own fact is not found (its stream was lost), facts from its time on
        are given again: better twice than never.

        Raises:
            Unavailable: NATS cannot be reached. While it follows it waits for NATS instead.
        """
        if self._client is None or not self._client.is_connected:
            raise _unavailable()
        return self._records(self._client, selection, after, follow)

    async def _records(
        self, client: Client, selection: Selection, after: Position | None, follow: bool
    ) -> AsyncIterator[Record | None]:
        while True:
            try:
                async for record in self._read(client, selection, after, follow):
                    if record is not None:
                        after = position(record.id)
                    yield record
                return
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if not follow:
                    raise _unavailable() from error
            yield None
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read(
        self, client: Client, selection: Selection, after: Position | None, follow: bool
    ) -> AsyncIterator[Record | None]:
        start = await self._start(client, selection.tenant, after)
        async with _Consumer(client, selection.subject, start) as consumer:
            remaining = consumer.pending
            while follow or remaining > 0:
                messages = await consumer.fetch(self._heartbeat_seconds if follow else 1.0)
                remaining -= len(messages)
                for message in messages:
                    if selection.wants(message.subject):
                        yield _record(message)
                if not messages:
                    await consumer.require()
                    yield None

    async def _start(self, client: Client, tenant: str, after: Position | None) -> dict[str, Any]:
        """Where in the stream to begin, as options of a consumer."""
        if after is None:
            return {"deliver_policy": DeliverPolicy.ALL}
        # A fact is published after it was made; the two machines' clocks may differ.
        since = (after.time - _CLOCK_SKEW).isoformat().replace("+00:00", "Z")
        start = {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": since}
        async with _Consumer(client, f"millrace.{tenant}.>", start) as consumer:
            remaining = consumer.pending
            while remaining > 0:
                messages = await consumer.fetch(1.0)
                if not messages:
                    break
                remaining -= len(messages)
                for message in messages:
                    if _id(message) == after.id:
                        following = message.metadata.sequence.stream + 1
                        return {
                            "deliver_policy": DeliverPolicy.BY_START_SEQUENCE,
                            "opt_start_seq": following,
                        }
        return start


class _Consumer:
    """An ephemeral pull consumer without acknowledgements."""

    def __init__(self, client: Client, subject: str, start: dict[str, Any]) -> None:
        self._jetstream = client.jetstream()
        self._config = ConsumerConfig(
            filter_subject=subject,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_CONSUMER_FORGOTTEN_SECONDS,
            mem_storage=True,
            **start,
        )
        self.pending = 0

    async def __aenter__(self) -> "_Consumer":
        info = await self._jetstream.add_consumer(STREAM, self._config)
        self._name = info.name
        self.pending = info.num_pending or 0
        self._subscription = await self._jetstream.pull_subscribe_bind(
            durable=self._name, stream=STREAM
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        with suppress(nats.errors.Error, OSError, TimeoutError):
            await self._subscription.unsubscribe()
            await self._jetstream.delete_consumer(STREAM, self._name)

    async def fetch(self, timeout_seconds: float) -> list[Msg]:
        """What there is, waiting for a first message; empty after the timeout."""
        try:
            return await self._subscription.fetch(_BATCH, timeout=timeout_seconds)
        except TimeoutError:
            return []

    async def require(self) -> None:
        """Raise when the server has lost the consumer, as after its restart."""
        await self._jetstream.consumer_info(STREAM, self._name)


def _unavailable() -> Unavailable:
    return Unavailable(
        "the event stream cannot be reached now; try again", reason="EVENTS_UNAVAILABLE"
    )


def _record(message: Msg) -> Record:
    _, _, stage, fact = message.subject.split(".", 3)
    return Record(_id(message), f"{stage}.{fact}", message.data.decode())


def _id(message: Msg) -> str:
    """A fact's id is its message id; one that came without it holds it in its document."""
    header = (message.headers or {}).get("Nats-Msg-Id")
    return header or str(json.loads(message.data)["id"])
