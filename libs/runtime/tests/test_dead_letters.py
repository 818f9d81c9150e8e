"""Dead letters against a real nats-server: what is refused, shown, replayed and given up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from millrace.data.v1 import events_pb2
from millrace.topology import DEAD_LETTER_STREAM, REPLAY_STREAM, STREAM, fact_of
from millrace_runtime import bus, cloudevent, dead_letters, names
from millrace_runtime.bus import Consumer, PoisonFact, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.dead_letters import ANY_TENANT, DeadLetters, Letter
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable
from millrace_testkit.clock import FakeClock
from millrace_testkit.servers import NatsServer

SUBJECT = "millrace.acme.data.dataset.ready"
CLOCK = FakeClock()


def ready(name: str, tenant: str = "acme", identifier: str = "") -> bytes:
    """``dataset.ready`` as it is published."""
    message = events_pb2.DatasetReady(dataset=name)
    event = Event(
        identifier or names.new_id("fact"), fact_of(type(message)), tenant, message, CLOCK()
    )
    return cloudevent.to_json(event).encode()


class Stage:
    """A consumer of dataset.ready whose handler does as it is told; publishes by hand."""

    def __init__(
        self,
        server: NatsServer,
        name: str = "trainer",
        slow_seconds: float = 0.0,
        **options: Any,
    ) -> None:
        self.seen: list[str] = []
        self.calls: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.hold = threading.Event()
        self.held: set[str] = set()
        self.slow_seconds = slow_seconds
        subscription = Subscription(events_pb2.DatasetReady, self._handle)
        self._server = server
        self._consumer = Consumer(name, [subscription], now=CLOCK, **options)
        self._name = name

    def _handle(self, event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetReady)
        name = event.message.dataset
        self.calls.append(name)
        if name in self.held:
            self.hold.wait(20)
        if self.slow_seconds:
            threading.Event().wait(self.slow_seconds)
        if name in self.errors:
            raise self.errors[name]
        self.seen.append(name)

    async def publish(self, payload: bytes, subject: str = SUBJECT) -> None:
        await self.client.jetstream().publish(subject, payload, stream=STREAM)

    async def backlog(self, stream: str = STREAM) -> int:
        """Facts that the stage has not acknowledged."""
        info = await self.client.jetstream().consumer_info(stream, self._name)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def _consumes(self) -> bool:
        try:
            await self.backlog(STREAM)
            await self.backlog(REPLAY_STREAM)
        except NotFoundError:
            return False
        return True

    async def __aenter__(self) -> "Stage":
        self.client = await bus.connect_patiently(self._server.url, "test")
        await bus.ensure_streams(self.client.jetstream())
        self.letters = DeadLetters(self.client.jetstream())
        self._task = asyncio.create_task(self._consumer.run(self.client))
        await until(self._consumes)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hold.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Client]:
    """A connection of somebody else, while no stage runs."""
    client = await bus.connect_patiently(server.url, "test")
    yield client
    await client.close()


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


async def one_letter(stage: Stage, tenant: str = "acme") -> Letter:
    """The tenant's only letter, once there is one."""

    async def there_is() -> bool:
        return bool((await stage.letters.page(tenant, 10))[0])

    await until(there_is)
    letters, more = await stage.letters.page(tenant, 10)
    assert (len(letters), more) == (1, False)
    return letters[0]


async def no_letters(stage: Stage) -> None:
    async def there_are_none() -> bool:
        return not (await stage.letters.page(ANY_TENANT, 1))[0]

    await until(there_are_none)


async def all_handled(stage: Stage, stream: str = STREAM) -> None:
    async def is_idle() -> bool:
        return await stage.backlog(stream) == 0

    await until(is_idle)


def test_a_letter_says_who_refused_what_and_why(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("100 % wrong:\n  “bad” is no \ud800 dataset")
            payload = ready("bad", identifier="fact-1")
            await stage.publish(payload)
            letter = await one_letter(stage)
            assert letter == Letter(
                id=dead_letters.letter_id("trainer", payload),
                subject=SUBJECT,
                consumer="trainer",
                reason="100 % wrong: “bad” is no ? dataset",
                error="PoisonFact",
                deliveries=1,
                time=CLOCK(),
                payload=payload,
            )
            assert (letter.tenant, letter.fact) == ("acme", "data.dataset.ready")
            assert await stage.letters.get("acme", letter.id) == letter
            assert await stage.letters.replaying("acme") == frozenset()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no JSON",
        b"\xff\x00",
        b"[" * 100_000,
        b'"text"',
        b'{"id": 5, "type": "unknown"}',
        b'{"type": ["x"], "id": "\\ud800"}',
        ready("x", identifier="fact-1").replace(b'"acme"', b"7"),
        ready("x", identifier="fact-1").replace(b"+00:00", b"").replace(b'Z",', b'",'),
        b'{"id": "fact-1", "type": "millrace.data.v1.DatasetReady"}',
    ],
)
def test_what_is_no_event_is_refused_at_once_and_known_by_its_bytes(
    nats_server: NatsServer, payload: bytes
) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            await stage.publish(payload)
            await stage.publish(ready("good"))
            await until(lambda: stage.seen == ["good"])
            letter = await one_letter(stage)
            assert (letter.payload, letter.error) == (payload, "MalformedEvent")
            await stage.letters.replay("acme", letter.id)
            await all_handled(stage, REPLAY_STREAM)
            assert (await one_letter(stage)).id == letter.id

    asyncio.run(scenario())


def test_a_fact_of_another_kind_is_refused_at_once(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        message = events_pb2.DatasetFailed(dataset="other")
        event = Event("fact-1", fact_of(type(message)), "acme", message, CLOCK())
        async with Stage(nats_server) as stage:
            await stage.publish(cloudevent.to_json(event).encode())
            assert "DatasetFailed" in (await one_letter(stage)).reason

    asyncio.run(scenario())


def test_a_payload_as_large_as_the_server_takes_is_cut_and_blocks_nothing(
    nats_server: NatsServer,
) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            await stage.client.request(SUBJECT, b"x" * stage.client.max_payload, timeout=5)
            await stage.publish(ready("good"))
            await until(lambda: stage.seen == ["good"])
            letter = await one_letter(stage)
            assert 0 < len(letter.payload) < stage.client.max_payload
            await stage.letters.replay("acme", letter.id)
            await all_handled(stage, REPLAY_STREAM)
            assert (await one_letter(stage)).id == letter.id

    asyncio.run(scenario())


def test_a_fact_that_keeps_failing_blocks_nothing_and_is_refused_in_the_end(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "RETRY_DELAY_SECONDS", 0.02)

    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = RuntimeError("no way")
            await stage.publish(ready("bad"))
            for number in range(50):
                await stage.publish(ready(f"good {number}"))
            await until(lambda: len(stage.seen) == 50)
            letter = await one_letter(stage)
            assert (letter.error, letter.reason) == ("RuntimeError", "no way")
            assert letter.deliveries == bus.MAXIMUM_DELIVERIES == stage.calls.count("bad")

    asyncio.run(scenario())


def test_a_fact_is_not_refused_for_what_its_handler_waits_for(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "RETRY_DELAY_SECONDS", 0.01)

    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["early"] = Unavailable("nobody answers", reason="UNAVAILABLE")
            await stage.publish(ready("early"))
            await until(lambda: stage.calls.count("early") > bus.MAXIMUM_DELIVERIES + 2)
            del stage.errors["early"]
            await until(lambda: stage.seen == ["early"])
            await no_letters(stage)

    asyncio.run(scenario())


def test_a_handler_that_hangs_blocks_nothing(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server, handling_seconds=0.1) as stage:
            stage.held.add("hung")
            await stage.publish(ready("hung"))
            for number in range(5):
                await stage.publish(ready(f"good {number}"))
            await until(lambda: len(stage.seen) == 5)
            stage.hold.set()
            await all_handled(stage)
            await no_letters(stage)

    asyncio.run(scenario())


def test_facts_behind_a_slow_one_are_not_given_to_somebody_else(nats_server: NatsServer) -> None:
    """Eight slow facts take longer than the server's patience with the last of them."""

    async def scenario() -> None:
        async with connected(nats_server) as client:
            await bus.ensure_streams(client.jetstream())
            for number in range(8):
                await client.jetstream().publish(SUBJECT, ready(f"slow {number}"))
        async with Stage(nats_server, slow_seconds=0.5, ack_wait_seconds=2.0) as busy:
            await until(lambda: bool(busy.calls))
            async with Stage(nats_server, ack_wait_seconds=2.0) as idle:
                assert len(busy.seen) < 8
                await until(lambda: len(busy.seen) == 8)
                await all_handled(busy)
                assert idle.calls == []

    asyncio.run(scenario())


def test_a_consumer_ends_though_the_client_swallows_its_cancellation(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def swallowing(jetstream: JetStreamContext) -> None:
        await ensure_streams(jetstream)
        waiting.append(jetstream)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(20)

    async def scenario() -> None:
        async with connected(nats_server) as client:
            monkeypatch.setattr(bus, "ensure_streams", swallowing)
            subscription = Subscription(events_pb2.DatasetReady, lambda _event: None)
            consuming = asyncio.create_task(Consumer("trainer", [subscription]).run(client))
            await until(lambda: len(waiting) == 2)  # for facts, and for replays
            consuming.cancel()
            await asyncio.wait({consuming}, timeout=10)
            assert consuming.cancelled()

    ensure_streams = bus.ensure_streams
    waiting: list[JetStreamContext] = []
    asyncio.run(scenario())


def test_the_same_fact_refused_again_is_one_letter(nats_server: NatsServer) -> None:
    """After redelivery, and after the stream was lost and the history published again."""

    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("first")
            payload = ready("bad")
            await stage.publish(payload)
            first = await one_letter(stage)
            stage.errors["bad"] = PoisonFact("second")
            await stage.publish(payload)
            await all_handled(stage)
            assert (await one_letter(stage)).reason == "second"
            await stage.client.jetstream().delete_stream(STREAM)
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("third")
            await stage.publish(ready("another"))
            await stage.publish(payload)
            await until(lambda: "bad" in stage.calls)
            await all_handled(stage)
            third = await one_letter(stage)
            assert (third.id, third.reason) == (first.id, "third")

    asyncio.run(scenario())


def test_two_stages_that_refuse_one_fact_write_two_letters(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as trainer, Stage(nats_server, "registry") as registry:
            for stage in (trainer, registry):
                stage.errors["bad"] = PoisonFact("no")
            await trainer.publish(ready("bad"))
            await until(lambda: bool(trainer.calls and registry.calls))
            await all_handled(trainer)
            await all_handled(registry)
            letters, _ = await trainer.letters.page("acme", 10)
            assert {letter.consumer for letter in letters} == {"trainer", "registry"}
            # A replay goes to the stage that refused, and to that one alone.
            del trainer.errors["bad"], registry.errors["bad"]
            of_registry = next(each for each in letters if each.consumer == "registry")
            await trainer.letters.replay("acme", of_registry.id)
            await until(lambda: registry.seen == ["bad"])
            assert (await one_letter(trainer)).consumer == "trainer"
            assert trainer.calls == ["bad"]

    asyncio.run(scenario())


def test_a_replay_that_succeeds_removes_the_letter(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("no")
            await stage.publish(ready("bad"))
            letter = await one_letter(stage)
            del stage.errors["bad"]
            assert await stage.letters.replay("acme", letter.id) == letter
            await no_letters(stage)
            await all_handled(stage, REPLAY_STREAM)
            assert stage.seen == ["bad"]
            assert await stage.letters.replaying("acme") == frozenset()
            with pytest.raises(NotFound):
                await stage.letters.replay("acme", letter.id)

    asyncio.run(scenario())


def test_a_replay_that_fails_leaves_the_letter_with_the_new_reason(
    nats_server: NatsServer,
) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("old")
            await stage.publish(ready("bad"))
            letter = await one_letter(stage)
            stage.errors["bad"] = PoisonFact("new")
            await stage.letters.replay("acme", letter.id)
            await until(lambda: len(stage.calls) == 2)
            await all_handled(stage, REPLAY_STREAM)
            again = await one_letter(stage)
            assert (again.id, again.subject, again.reason) == (letter.id, SUBJECT, "new")
            assert await stage.letters.replaying("acme") == frozenset()

    asyncio.run(scenario())


def test_a_letter_stays_until_its_stage_is_there_to_handle_it(nats_server: NatsServer) -> None:
    """Whoever is killed in the middle of a replay, the fact is somewhere."""

    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("no")
            await stage.publish(ready("bad"))
            letter = await one_letter(stage)
            await all_handled(stage)
        async with connected(nats_server) as client:
            letters = DeadLetters(client.jetstream())
            for _ in range(3):  # asked for three times, it is replayed once
                await letters.replay("acme", letter.id)
        nats_server.kill()
        nats_server.start()
        async with connected(nats_server) as client:
            letters = DeadLetters(client.jetstream())
            assert await letters.get("acme", letter.id) == letter
            assert await letters.replaying("acme") == {letter.id}
        async with Stage(nats_server) as stage:
            await until(lambda: stage.seen == ["bad"])
            await no_letters(stage)
            await all_handled(stage, REPLAY_STREAM)
            assert stage.calls == ["bad"]

    asyncio.run(scenario())


def test_a_letter_that_is_given_up_is_replayed_no_more(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            stage.errors["bad"] = PoisonFact("no")
            await stage.publish(ready("bad"))
            letter = await one_letter(stage)
            await all_handled(stage)
        async with connected(nats_server) as client:
            letters = DeadLetters(client.jetstream())
            await letters.replay("acme", letter.id)
            assert await letters.delete("acme", letter.id) == letter
            with pytest.raises(NotFound):
                await letters.delete("acme", letter.id)
            assert await letters.replaying("acme") == frozenset()
        async with Stage(nats_server) as stage:
            await no_letters(stage)
            await all_handled(stage, REPLAY_STREAM)
            assert stage.calls == []

    asyncio.run(scenario())


def test_pages_are_newest_first_and_of_one_tenant(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            for number in range(7):
                stage.errors[f"bad {number}"] = PoisonFact(f"number {number}")
                await stage.publish(ready(f"bad {number}"))
            stage.errors["theirs"] = PoisonFact("theirs")
            await stage.publish(ready("theirs", "globex"), "millrace.globex.data.dataset.ready")
            await all_handled(stage)
            assert (await one_letter(stage, "globex")).reason == "theirs"
            reasons: list[str] = []
            after, more = "", True
            while more:
                page, more = await stage.letters.page("acme", 3, after)
                reasons += [letter.reason for letter in page]
                after = page[-1].id
            assert reasons == [f"number {number}" for number in reversed(range(7))]
            assert len((await stage.letters.page(ANY_TENANT, 10))[0]) == 8
            with pytest.raises(InvalidArgument):
                await stage.letters.page("acme", 3, "letter-none")
            with pytest.raises(NotFound):
                await stage.letters.get("globex", after)

    asyncio.run(scenario())


def test_what_else_came_into_the_stream_is_passed_over(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Stage(nats_server) as stage:
            await stage.client.jetstream().publish("dead.millrace.acme.a.b.c.letter-1", b"x")
            assert await stage.letters.page("acme", 10) == ([], False)
            with pytest.raises(NotFound):
                await stage.letters.get("acme", "letter-1")

    asyncio.run(scenario())


def test_an_old_stream_of_letters_is_told_to_keep_one_a_subject(nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with connected(nats_server) as client:
            jetstream = client.jetstream()
            await bus.ensure_streams(jetstream)
            found = (await jetstream.stream_info(DEAD_LETTER_STREAM)).config
            await jetstream.update_stream(found, max_msgs_per_subject=-1)
            await bus.ensure_streams(jetstream)
            again = (await jetstream.stream_info(DEAD_LETTER_STREAM)).config
            assert (again.max_msgs_per_subject, again.subjects) == (1, ["dead.millrace.>"])

    asyncio.run(scenario())
