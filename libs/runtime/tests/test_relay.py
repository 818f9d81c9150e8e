"""The relay against a real nats-server: what it publishes, and what it publishes again."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from sqlalchemy import MetaData, select

from millrace.data.v1 import events_pb2
from millrace.topology import STREAM
from millrace_runtime import bus
from millrace_runtime.bus import Consumer, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import Database, open_database
from millrace_runtime.outbox import Outbox, outbox_table
from millrace_runtime.relay import Relay
from millrace_testkit.history import replay
from millrace_testkit.servers import NatsServer

METADATA = MetaData()
TABLE = outbox_table(METADATA)
OUTBOX = Outbox(TABLE)


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


def recorded(database: Database) -> Sequence[str]:
    with database.transaction() as connection:
        return [row.id for row in connection.execute(select(TABLE.c.id).order_by(TABLE.c.sequence))]


def published(database: Database) -> bool:
    with database.transaction() as connection:
        return OUTBOX.backlog(connection) == 0


async def until(condition: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def until_history(server: NatsServer, database: Database) -> Sequence[str]:
    """The stream's ids, when it holds every recorded fact."""
    async with asyncio.timeout(30):
        while True:
            with suppress(NotFoundError):  # while the relay has the stream made anew
                seen = await replay(server.url)
                if set(recorded(database)) <= set(seen):
                    return seen
            await asyncio.sleep(0.1)


@asynccontextmanager
async def relaying(database: Database, server: NatsServer) -> AsyncIterator[Client]:
    """A relay, running, as a process of its own would have it."""
    client = await bus.connect_patiently(server.url, "test")
    task = asyncio.create_task(Relay(database, OUTBOX).run(client))
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def publish_once(database: Database, server: NatsServer) -> None:
    async with relaying(database, server):
        await until(lambda: published(database))


def stream_file(server: NatsServer, name: str) -> Path:
    return next(server.store.rglob(f"streams/{STREAM}")) / name


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_facts_lie_in_the_stream_in_the_order_of_the_outbox(
    store: Database, nats_server: NatsServer
) -> None:
    record(store, *(f"set-{number}" for number in range(1200)))
    asyncio.run(publish_once(store, nats_server))
    assert asyncio.run(replay(nats_server.url)) == recorded(store)


def test_facts_larger_than_one_write_are_published_in_order(
    store: Database, nats_server: NatsServer
) -> None:
    record(store, *(str(number) * 400_000 for number in range(6)))
    asyncio.run(publish_once(store, nats_server))
    assert asyncio.run(replay(nats_server.url)) == recorded(store)


def test_a_server_that_dies_amid_a_backlog_leaves_the_order_as_it_was(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        async with relaying(store, nats_server) as client:
            await bus.ensure_streams(client.jetstream())
            for deaths in (1, 2):
                record(store, *(f"set-{number}" for number in range(600)))
                before = (await client.jetstream().stream_info(STREAM)).state.last_seq
                while (await client.jetstream().stream_info(STREAM)).state.last_seq == before:
                    await asyncio.sleep(0)
                nats_server.kill()
                nats_server.start()
                await until(lambda: client.stats["reconnects"] == deaths)  # noqa: B023
            seen = await until_history(nats_server, store)
            assert list(dict.fromkeys(seen)) == recorded(store)

    asyncio.run(scenario())


def test_facts_recorded_while_the_server_is_dead_arrive_after_it_returns(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        async with relaying(store, nats_server):
            record(store, "before")
            await until(lambda: published(store))
            nats_server.kill()
            record(store, "during")
            nats_server.start()
            assert list(await until_history(nats_server, store)) == recorded(store)

    asyncio.run(scenario())


def test_a_fact_published_twice_is_stored_once(store: Database, nats_server: NatsServer) -> None:
    record(store, "one", "two")
    asyncio.run(publish_once(store, nats_server))
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE outbox SET published_in = NULL")
    asyncio.run(publish_once(store, nats_server))
    assert asyncio.run(replay(nats_server.url)) == recorded(store)


def test_two_relays_may_publish_the_same_outbox(store: Database, nats_server: NatsServer) -> None:
    async def scenario() -> None:
        async with relaying(store, nats_server), relaying(store, nats_server):
            record(store, *(f"set-{number}" for number in range(700)))
            await until(lambda: published(store))

    asyncio.run(scenario())
    assert asyncio.run(replay(nats_server.url)) == recorded(store)


def test_the_history_is_published_again_into_a_stream_that_was_deleted(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        record(store, "one", "two")
        async with relaying(store, nats_server) as client:
            await until(lambda: published(store))
            await client.jetstream().delete_stream(STREAM)
            record(store, "three")
            await until(lambda: published(store))
            assert list(await until_history(nats_server, store)) == recorded(store)

    asyncio.run(scenario())


def test_messages_that_were_removed_are_published_again_though_called_duplicates(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        record(store, "one", "two", "three")
        async with relaying(store, nats_server) as client:
            await until(lambda: published(store))
            await client.jetstream().delete_msg(STREAM, 2)
            await until_history(nats_server, store)

    asyncio.run(scenario())


@pytest.mark.parametrize("published_by_others", [0, 5])
def test_an_old_copy_of_the_store_is_noticed_by_a_relay_that_was_not_there(
    store: Database, nats_server: NatsServer, tmp_path: Path, published_by_others: int
) -> None:
    async def fill_up() -> None:
        client = await bus.connect(nats_server.url, "others")
        for _ in range(published_by_others):
            await client.jetstream().publish("millrace.acme.tuner.job.started", b'{"id": "other"}')
        await client.close()

    record(store, "one")
    asyncio.run(publish_once(store, nats_server))
    nats_server.stop()
    shutil.copytree(nats_server.store, tmp_path / "copy")
    nats_server.start()
    record(store, "two", "three")
    asyncio.run(publish_once(store, nats_server))
    nats_server.kill()
    nats_server.forget()
    shutil.copytree(tmp_path / "copy", nats_server.store)
    nats_server.start()
    asyncio.run(fill_up())

    async def scenario() -> None:
        async with relaying(store, nats_server):
            await until_history(nats_server, store)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_stopped_cleanly", [True, False])
def test_a_damaged_message_is_published_again(
    store: Database, nats_server: NatsServer, is_stopped_cleanly: bool
) -> None:
    """After a clean stop the server still counts it, and calls it a duplicate."""

    async def scenario() -> None:
        record(store, *(f"set-{number}" for number in range(100)))
        async with relaying(store, nats_server) as client:
            await until(lambda: published(store))
            (nats_server.stop if is_stopped_cleanly else nats_server.kill)()
            block = stream_file(nats_server, "msgs/1.blk")
            flip_bit(block, block.stat().st_size // 2)
            nats_server.start()
            await until(lambda: client.is_connected)
            await until_history(nats_server, store)

    asyncio.run(scenario())


def test_a_consumer_that_was_further_than_the_stream_now_ends_sees_what_is_published_again(
    store: Database, nats_server: NatsServer
) -> None:
    seen: set[str] = set()

    def see(event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetReady)
        seen.add(event.message.dataset)

    async def scenario() -> None:
        consumer = Consumer("trainer", [Subscription(events_pb2.DatasetReady, see)])
        async with relaying(store, nats_server) as client:
            consuming = asyncio.create_task(consumer.run(client))
            record(store, *(f"set-{number}" for number in range(100)))
            await until(lambda: len(seen) == 100)
            nats_server.kill()
            flip_bit(stream_file(nats_server, "msgs/1.blk"), 1000)
            nats_server.start()
            seen.clear()
            # Sequences that the consumer had passed are filled with what it has not seen.
            record(store, *(f"later-{number}" for number in range(60)))
            await until(lambda: sum(name.startswith("later") for name in seen) == 60)
            await until(lambda: "set-99" in seen)
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)

    asyncio.run(scenario())


def test_a_stream_whose_description_was_damaged_is_healthy_again(
    store: Database, nats_server: NatsServer
) -> None:
    async def scenario() -> None:
        async with relaying(store, nats_server):
            record(store, "one")
            await until(lambda: published(store))
            nats_server.kill()
            flip_bit(stream_file(nats_server, "meta.inf"), 20)
            nats_server.start()
            assert not nats_server.is_healthy()
            await until(nats_server.is_healthy)
            await until_history(nats_server, store)

    asyncio.run(scenario())


def test_a_stream_that_a_damaged_consumer_makes_unusable_is_made_anew(
    store: Database, nats_server: NatsServer
) -> None:
    def break_consumer() -> None:
        path = stream_file(nats_server, "obs/trainer/meta.inf")
        path.write_bytes(path.read_bytes().replace(b"max_ack_pending", b"max_ack_pejding"))

    async def scenario() -> None:
        consumer = Consumer("trainer", [Subscription(events_pb2.DatasetReady, lambda _: None)])
        async with relaying(store, nats_server) as client:
            consuming = asyncio.create_task(consumer.run(client))
            record(store, "one")
            await until(lambda: published(store))
            await until(lambda: stream_file(nats_server, "obs/trainer/meta.inf").exists())
            nats_server.kill()
            break_consumer()
            nats_server.start()
            await until(lambda: client.is_connected)
            record(store, "two")
            await until(lambda: published(store))
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
        assert list(await until_history(nats_server, store)) == recorded(store)

    asyncio.run(scenario())
