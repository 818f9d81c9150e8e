"""The consumer, with a relay before it, against a real nats-server."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from millrace.data.v1 import events_pb2
from millrace.topology import DEAD_LETTER_STREAM
from millrace_runtime import bus
from millrace_runtime.bus import Consumer, PoisonFact, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import Database, open_database
from millrace_runtime.outbox import Outbox, outbox_table
from millrace_runtime.relay import Relay
from millrace_testkit.servers import NatsServer

METADATA = MetaData()
OUTBOX = Outbox(outbox_table(METADATA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/outbox.db")
    METADATA.create_all(database.engine)
    yield database
    database.close()


def record(database: Database, *names: str) -> None:
    with database.transaction() as connection:
        for name in names:
            OUTBOX.record(connection, "acme", events_pb2.DatasetReady(dataset=name))


async def until(condition: Callable[[], bool], timeout_seconds: float = 15.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.02)


class Mesh:
    """A relay and a consumer of dataset.ready, running."""

    def __init__(self, database: Database, server: NatsServer) -> None:
        self.seen: list[str] = []
        self.poison: set[str] = set()
        self.failing_once: set[str] = set()
        self._server = server
        self._relay = Relay(database, OUTBOX)
        self._consumer = Consumer("trainer", [Subscription(events_pb2.DatasetReady, self._handle)])

    def _handle(self, event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetReady)
        name = event.message.dataset
        if name in self.poison:
            raise PoisonFact(f"{name} is poison")
        if name in self.failing_once:
            self.failing_once.remove(name)
            raise RuntimeError("try me again")
        self.seen.append(name)

    async def __aenter__(self) -> "Mesh":
        self.client = await bus.connect_patiently(self._server.url, "test")
        self._tasks = [
            asyncio.create_task(self._relay.run(self.client)),
            asyncio.create_task(self._consumer.run(self.client)),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()


def test_recorded_facts_reach_the_consumer_in_order(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        record(store, "one", "two", "three")
        async with Mesh(store, nats_server) as mesh:
            await until(lambda: len(mesh.seen) == 3)
            assert mesh.seen == ["one", "two", "three"]

    asyncio.run(scenario())
    with store.transaction() as connection:
        assert OUTBOX.backlog(connection) == 0


def test_a_handler_that_fails_sees_the_fact_again(store: Database, nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with Mesh(store, nats_server) as mesh:
            mesh.failing_once.add("one")
            record(store, "one")
            await until(lambda: mesh.seen == ["one"])

    asyncio.run(scenario())


def test_poison_goes_to_the_dead_letters_with_its_reason_and_blocks_nothing(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        async with Mesh(store, nats_server) as mesh:
            mesh.poison.add("bad")
            record(store, "bad", "good")
            await until(lambda: mesh.seen == ["good"])
            jetstream = mesh.client.jetstream()
            letter = await jetstream.get_msg(DEAD_LETTER_STREAM, seq=1)
            assert letter.subject.startswith("dead.millrace.acme.data.dataset.ready.letter-")
            assert letter.headers and letter.headers["Millrace-Reason"] == "bad is poison"

    asyncio.run(scenario())
