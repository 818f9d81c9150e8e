"""A steady flow of facts from two stages to a third, through a nats-server that is disturbed.

40 facts a second: some five checkpoints a second, each with what follows from it.

Each producer has an outbox of its own and a relay; the consumer keeps an effect of each fact
in a table without any constraint, so that one that happened twice would be seen.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.message import Message
from nats.aio.client import Client
from sqlalchemy import Column, Index, MetaData, String, Table, func, select

from millrace.data.v1 import events_pb2 as data
from millrace.tuner.v1 import events_pb2 as tuner
from millrace_runtime import bus
from millrace_runtime.bus import Consumer, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import Database, open_database
from millrace_runtime.outbox import Outbox, outbox_table
from millrace_runtime.relay import Relay

_OUTBOXES = MetaData()
_OUTBOX = outbox_table(_OUTBOXES)
_EFFECTS = MetaData()
_EFFECT = Table("effects", _EFFECTS, Column("name", String(64)), Index("effects_name", "name"))
_TURN_SECONDS = 0.05


class Producer:
    """Records facts at a steady rate."""

    def __init__(
        self, database: Path, message: Callable[[int], Message], facts_a_second: int
    ) -> None:
        self.database = open_database(f"sqlite:///{database}")
        _OUTBOXES.create_all(self.database.engine)
        self.outbox = Outbox(_OUTBOX)
        self.relay = Relay(self.database, self.outbox)
        self.count = 0
        self.is_paused = False
        self._message = message
        self._a_turn = round(facts_a_second * _TURN_SECONDS)

    async def run(self) -> None:
        while True:
            if not self.is_paused:
                await asyncio.to_thread(self._record)
                self.relay.ring()
            await asyncio.sleep(_TURN_SECONDS)

    def _record(self) -> None:
        with self.database.transaction() as connection:
            for number in range(self.count, self.count + self._a_turn):
                self.outbox.record(connection, "acme", self._message(number))
        self.count += self._a_turn

    def ids(self) -> Sequence[str]:
        """Of all recorded facts, in order."""
        with self.database.transaction() as connection:
            rows = connection.execute(select(_OUTBOX.c.id).order_by(_OUTBOX.c.sequence))
            return [row.id for row in rows]

    def is_published(self, count: int) -> bool:
        """Whether the first ``count`` facts are."""
        waiting = select(func.count()).where(
            _OUTBOX.c.published_in.is_(None), _OUTBOX.c.sequence <= count
        )
        with self.database.transaction() as connection:
            return connection.execute(waiting).scalar_one() == 0


class Effects:
    """What the consumer did, by the natural key of what it did it about."""

    def __init__(self, database: Path) -> None:
        self.database = open_database(f"sqlite:///{database}")
        _EFFECTS.create_all(self.database.engine)
        self.deliveries = 0
        self.names: set[str] = set()  # as far as this process knows

    def handle(self, event: Event) -> None:
        message = event.message
        name = message.dataset if isinstance(message, data.DatasetReady) else message.job  # type: ignore[attr-defined]
        self.deliveries += 1
        with self.database.transaction() as connection:
            known = connection.execute(select(_EFFECT.c.name).where(_EFFECT.c.name == name))
            if known.first() is None:
                connection.execute(_EFFECT.insert().values(name=name))
        self.names.add(name)

    def counts(self) -> Mapping[str, int]:
        with self.database.transaction() as connection:
            return Counter(row.name for row in connection.execute(select(_EFFECT.c.name)))


class Flow:
    """Producers, relays and the consumer, running over one nats-server."""

    def __init__(self, directory: Path, url: str) -> None:
        self._url = url
        self.producers = (
            Producer(directory / "data.db", lambda n: data.DatasetReady(dataset=f"set-{n}"), 20),
            Producer(directory / "tuner.db", lambda n: tuner.JobStarted(job=f"job-{n}"), 20),
        )
        self.effects = Effects(directory / "effects.db")
        self._relays: list[tuple[Client, asyncio.Task[None]]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        handled = [Subscription(kind, self.effects.handle) for kind in _CONSUMED]
        client = await bus.connect_patiently(self._url, "registry")
        tasks = [asyncio.create_task(Consumer("registry", handled).run(client))]
        tasks += [asyncio.create_task(producer.run()) for producer in self.producers]
        await self.start_relays()
        try:
            yield
        finally:
            await self.stop_relays()
            await _end(tasks)
            await client.close()
            for database in self._databases():
                database.close()

    async def start_relays(self) -> None:
        """As after a start of their processes: they remember nothing."""
        for producer in self.producers:
            client = await bus.connect_patiently(self._url, "relay")
            producer.relay = Relay(producer.database, producer.outbox)
            self._relays.append((client, asyncio.create_task(producer.relay.run(client))))

    async def stop_relays(self) -> None:
        await _end([task for _, task in self._relays])
        for client, _ in self._relays:
            await client.close()
        self._relays.clear()

    def pause(self, is_paused: bool) -> None:
        for producer in self.producers:
            producer.is_paused = is_paused

    def recorded(self) -> Sequence[int]:
        """How many facts each producer has recorded."""
        return [producer.count for producer in self.producers]

    def is_published(self, counts: Sequence[int]) -> bool:
        pairs = zip(self.producers, counts, strict=True)
        return all(producer.is_published(count) for producer, count in pairs)

    def wrong_effects(self, counts: Sequence[int]) -> tuple[int, int]:
        """How many facts of the first ``counts`` have no effect, and how many more than one."""
        effects = self.effects.counts()
        lost = sum(effects[name] == 0 for name in names(counts))
        return lost, sum(count > 1 for count in effects.values())

    def _databases(self) -> Sequence[Database]:
        return [self.effects.database, *(producer.database for producer in self.producers)]


_CONSUMED = (data.DatasetReady, tuner.JobStarted)


def names(counts: Sequence[int]) -> set[str]:
    """What the first facts of each producer are about."""
    sets, jobs = counts
    return {f"set-{n}" for n in range(sets)} | {f"job-{n}" for n in range(jobs)}


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
