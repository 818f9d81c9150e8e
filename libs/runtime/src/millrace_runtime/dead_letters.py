"""Dead letters: facts that a stage could not handle, kept until they are replayed or given up.

A letter lies in a stream of its own, under a subject that ends in its id. Its way back is a
second stream, from which the stage that refused it, and no other, takes it:

    dead.millrace.<tenant>.<stage>.<resource>.<fact>.<letter>                 the letter
    replay.<consumer>.millrace.<tenant>.<stage>.<resource>.<fact>.<letter>    on its way back

The id follows from the consumer and the fact, and both streams keep one message a subject. So
a fact that is refused again (delivered twice, or published again after its stream was lost)
is the same letter, however much later. A letter stays while it is replayed, and goes when the
stage has handled it: whatever is killed meanwhile, it is in one place at least.
"""

import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    RawStreamMsg,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from millrace.topology import (
    DEAD_LETTER_STREAM,
    DEAD_LETTER_SUBJECTS,
    REPLAY_STREAM,
    REPLAY_SUBJECTS,
)
from millrace_runtime import cloudevent
from millrace_runtime.errors import InvalidArgument, NotFound

ANY_TENANT = "*"
_LONGEST_REASON = 1000
_ID_DIGITS = 26
_BATCH = 256
_FETCH_TIMEOUT_SECONDS = 2.0
_FORGOTTEN_SECONDS = 60.0
# A header's value travels as ASCII; what is not is written as in URLs.
_PLAIN = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")


@dataclass(frozen=True)
class Letter:
    """One fact that one stage could not handle.

    Attributes:
        id: follows from the consumer and the fact.
        subject: the fact's own: ``millrace.<tenant>.<stage>.<resource>.<fact>``.
        consumer: the stage that refused it.
        reason: what was wrong, in the words of the error.
        error: the error's kind.
        deliveries: how often the stage tried, this time.
        time: when it was refused last, UTC.
        payload: the CloudEvent, or whatever else came on the subject.
    """

    id: str
    subject: str
    consumer: str
    reason: str
    error: str
    deliveries: int
    time: datetime
    payload: bytes

    @property
    def tenant(self) -> str:
        return self.subject.split(".")[1]

    @property
    def fact(self) -> str:
        """``<stage>.<resource>.<past tense>``."""
        return self.subject.split(".", 2)[2]


def refused(
    consumer: str, subject: str, payload: bytes, error: Exception, time: datetime
) -> Letter:
    """The letter for a fact that ``consumer`` could not handle because of ``error``."""
    return Letter(
        id=letter_id(consumer, payload),
        subject=subject,
        consumer=consumer,
        reason=_one_line(str(error)),
        error=type(error).__name__,
        deliveries=1,
        time=time.astimezone(UTC),
        payload=payload,
    )


def _one_line(text: str) -> str:
    # Half a surrogate pair, as JSON may hold, cannot be sent.
    return " ".join(text.encode(errors="replace").decode().split())[:_LONGEST_REASON]


def letter_id(consumer: str, payload: bytes) -> str:
    """By the fact's own id; what has none is known by its bytes."""
    fact = _fact_id(payload) or hashlib.sha256(payload).hexdigest()
    digest = hashlib.sha256(f"{consumer} {fact}".encode(errors="replace")).hexdigest()
    return f"letter-{digest[:_ID_DIGITS]}"


def letter_subject(letter: Letter) -> str:
    return f"dead.{letter.subject}.{letter.id}"


def replay_subject(letter: Letter) -> str:
    return f"replay.{letter.consumer}.{letter.subject}.{letter.id}"


def fact_subject(replay: str) -> str:
    """The fact's own subject, from that of its replay.

    >>> fact_subject("replay.trainer.millrace.acme.data.dataset.ready.letter-1")
    'millrace.acme.data.dataset.ready'
    """
    return ".".join(replay.split(".")[2:-1])


def stream_configs() -> tuple[StreamConfig, StreamConfig]:
    """The two streams: letters are kept for ever, replays until they are acknowledged."""
    letters = _stream(DEAD_LETTER_STREAM, DEAD_LETTER_SUBJECTS, RetentionPolicy.LIMITS)
    return letters, _stream(REPLAY_STREAM, REPLAY_SUBJECTS, RetentionPolicy.WORK_QUEUE)


def _stream(name: str, subjects: Sequence[str], retention: RetentionPolicy) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=list(subjects),
        storage=StorageType.FILE,
        retention=retention,
        max_msgs_per_subject=1,
    )


class DeadLetters:
    """The letters, over one connection.

    What NATS raises is passed on; ``ensure_streams`` of the bus makes the streams.
    """

    def __init__(self, jetstream: JetStreamContext) -> None:
        self._jetstream = jetstream

    async def keep(self, letter: Letter) -> None:
        """Keep a letter durably, in place of the same one of earlier."""
        await self._jetstream.publish(
            letter_subject(letter),
            letter.payload,
            headers=_headers(letter),
            stream=DEAD_LETTER_STREAM,
        )

    async def page(self, tenant: str, limit: int, after: str = "") -> tuple[Sequence[Letter], bool]:
        """Up to ``limit`` letters of a tenant, refused last first, older than the letter
        ``after`` if given; and whether there are more. It reads all the tenant's letters.

        Raises:
            InvalidArgument: there is no letter ``after``.
        """
        before = await self._sequence(tenant, after) if after else None
        # One more than asked for, to know whether there are more.
        newest: deque[Letter] = deque(maxlen=limit + 1)
        async with self._reader(f"dead.millrace.{tenant}.>") as messages:
            async for message in messages:
                is_older = before is None or message.metadata.sequence.stream < before
                letter = _letter(message.subject, message.headers, message.data)
                if is_older and letter is not None:
                    newest.append(letter)
        letters = list(reversed(newest))
        return letters[:limit], len(letters) > limit

    async def get(self, tenant: str, identifier: str) -> Letter:
        """Raises NotFound: the tenant has no such letter."""
        message = await self._find(tenant, identifier)
        letter = _letter(str(message.subject), message.headers, message.data or b"")
        if letter is None:
            raise _no_such(identifier)
        return letter

    async def replay(self, tenant: str, identifier: str) -> Letter:
        """Give a letter back to the stage that refused it. It stays until it is handled.

        Raises:
            NotFound: the tenant has no such letter.
        """
        letter = await self.get(tenant, identifier)
        await self._jetstream.publish(replay_subject(letter), letter.payload, stream=REPLAY_STREAM)
        return letter

    async def replaying(self, tenant: str) -> frozenset[str]:
        """Ids of the tenant's letters that are on their way back."""
        subjects = f"replay.*.millrace.{tenant}.>"
        info = await self._jetstream.stream_info(REPLAY_STREAM, subjects_filter=subjects)
        return frozenset(subject.rsplit(".", 1)[-1] for subject in info.state.subjects or {})

    async def delete(self, tenant: str, identifier: str) -> Letter:
        """Give a letter up, also one that is on its way back.

        Raises:
            NotFound: the tenant has no such letter.
        """
        letter = await self.get(tenant, identifier)
        await self._jetstream.purge_stream(REPLAY_STREAM, subject=replay_subject(letter))
        await self._jetstream.purge_stream(DEAD_LETTER_STREAM, subject=letter_subject(letter))
        return letter

    async def settle(self, replay: str) -> None:
        """The replay with this subject was handled: its letter is no more."""
        letter = replay.rsplit(".", 1)[-1]
        subject = f"dead.{fact_subject(replay)}.{letter}"
        await self._jetstream.purge_stream(DEAD_LETTER_STREAM, subject=subject)

    async def _find(self, tenant: str, identifier: str) -> RawStreamMsg:
        subject = f"dead.millrace.{tenant}.*.*.*.{identifier}"
        try:
            return await self._jetstream.get_msg(
                DEAD_LETTER_STREAM, seq=1, subject=subject, next=True
            )
        except NotFoundError:
            raise _no_such(identifier) from None

    async def _sequence(self, tenant: str, identifier: str) -> int:
        try:
            return int((await self._find(tenant, identifier)).seq or 0)
        except NotFound:
            raise InvalidArgument(
                f"there is no dead letter {identifier!r}; leave 'after' out to start again",
                field="after",
            ) from None

    @asynccontextmanager
    async def _reader(self, subject: str) -> AsyncIterator[AsyncIterator[Msg]]:
        """All messages under ``subject``, oldest first, through a consumer of their own."""
        config = ConsumerConfig(
            filter_subject=subject,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_FORGOTTEN_SECONDS,
            mem_storage=True,
        )
        info = await self._jetstream.add_consumer(DEAD_LETTER_STREAM, config)
        subscription = await self._jetstream.pull_subscribe_bind(
            durable=info.name, stream=DEAD_LETTER_STREAM
        )
        try:
            yield _messages(subscription, info.num_pending or 0)
        finally:
            await subscription.unsubscribe()
            await self._jetstream.delete_consumer(DEAD_LETTER_STREAM, info.name)


async def _messages(
    subscription: JetStreamContext.PullSubscription, count: int
) -> AsyncIterator[Msg]:
    while count > 0:
        try:
            messages = await subscription.fetch(min(_BATCH, count), timeout=_FETCH_TIMEOUT_SECONDS)
        except TimeoutError:
            return  # some were given up meanwhile
        count -= len(messages)
        for message in messages:
            yield message


def _headers(letter: Letter) -> dict[str, str]:
    return {
        "Content-Type": cloudevent.CONTENT_TYPE,
        "Millrace-Consumer": letter.consumer,
        "Millrace-Reason": quote(letter.reason, safe=_PLAIN),
        "Millrace-Error": letter.error,
        "Millrace-Deliveries": str(letter.deliveries),
        "Millrace-Time": letter.time.isoformat(),
    }


def _letter(subject: str, headers: Mapping[str, str] | None, payload: bytes) -> Letter | None:
    """What ``keep`` kept; None for anything else that came into the stream."""
    try:
        known = headers or {}
        _dead, _, rest = subject.partition(".")
        own_subject, _, identifier = rest.rpartition(".")
        return Letter(
            id=identifier,
            subject=own_subject,
            consumer=known["Millrace-Consumer"],
            reason=unquote(known["Millrace-Reason"]),
            error=known["Millrace-Error"],
            deliveries=int(known["Millrace-Deliveries"]),
            time=datetime.fromisoformat(known["Millrace-Time"]),
            payload=payload,
        )
    except (KeyError, ValueError):
        return None


def _fact_id(payload: bytes) -> str:
    try:
        document: Any = json.loads(payload)
    except (ValueError, RecursionError):
        return ""
    found = document.get("id") if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _no_such(identifier: str) -> NotFound:
    return NotFound(f"No such dead letter: {identifier!r}", field="")
