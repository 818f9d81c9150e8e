"""The audit: reads back which facts the stream holds, for the relay to publish what is gone.

A stream loses messages silently: a server that finds a damaged block cuts it off, an old copy
of a store takes the place of the newer one, and what others publish fills the freed sequences.
Neither the stream's time of creation nor its sequences nor its counts tell (a message that
cannot be read is still counted). So the ids themselves are read, headers only: about 30,000 a
second on one core.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError

from millrace.topology import STREAM
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox

MESSAGE_ID = "Nats-Msg-Id"

_BATCH = 1000
_FETCH_TIMEOUT_SECONDS = 1.0
_MAXIMUM_STALLS = 5
_FORGOTTEN_SECONDS = 30.0


def another_message_id(fact: str) -> str:
    """A message id that was never used, for a fact that the server takes for published."""
    return f"{fact}/{secrets.token_hex(8)}"


async def holds(jetstream: JetStreamContext, fact: str, sequence: int) -> bool:
    """Whether the message at ``sequence`` of the stream can be read, and is that fact."""
    try:
        message = await jetstream.get_msg(STREAM, seq=sequence)
    except APIError:  # not there, or damaged
        return False
    return _fact_of(message.headers) == fact


class Audit:
    """Compares what an outbox has published with what can be read from the stream."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def missing(self, jetstream: JetStreamContext, incarnation: str) -> Sequence[str]:
        """Ids of facts published in ``incarnation`` that cannot be read from the stream.

        What NATS raises is passed on.
        """
        ids, subjects = await asyncio.to_thread(self._published, incarnation)
        for stage in sorted({subject.split(".")[2] for subject in subjects}):
            async for message in _messages(jetstream, f"millrace.*.{stage}.>"):
                ids.discard(_fact_of(message.headers))
        return sorted(ids)

    def _published(self, incarnation: str) -> tuple[set[str], set[str]]:
        """Ids and subjects. In pages, so that writers need not wait for long."""
        ids: set[str] = set()
        subjects: set[str] = set()
        after = 0
        while True:
            with self._database.transaction() as connection:
                page = self._outbox.published(connection, incarnation, after)
            if not page:
                return ids, subjects
            ids.update(fact.id for fact in page)
            subjects.update(fact.subject for fact in page)
            after = page[-1].sequence


async def _messages(jetstream: JetStreamContext, subject: str) -> AsyncIterator[Msg]:
    """All that is in the stream under ``subject``, headers only."""
    config = ConsumerConfig(
        filter_subject=subject,
        headers_only=True,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_FORGOTTEN_SECONDS,
        mem_storage=True,
    )
    info = await jetstream.add_consumer(STREAM, config)
    subscription = await jetstream.pull_subscribe_bind(consumer=info.name, stream=STREAM)
    left, stalls = info.num_pending or 0, 0
    while left > 0 and stalls < _MAXIMUM_STALLS:
        try:
            messages = await subscription.fetch(min(_BATCH, left), timeout=_FETCH_TIMEOUT_SECONDS)
        except TimeoutError:
            # What cannot be read is passed over, and counted as still to come. That the server
            # answers here tells it from one that has stopped.
            await jetstream.consumer_info(STREAM, info.name)
            stalls += 1
            continue
        left, stalls = left - len(messages), 0
        for message in messages:
            yield message
    await subscription.unsubscribe()
    await jetstream.delete_consumer(STREAM, info.name)


def _fact_of(headers: Mapping[str, str] | None) -> str:
    return (headers or {}).get(MESSAGE_ID, "").partition("/")[0]
