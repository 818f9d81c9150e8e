"""Attempts: real requests to a real receiver, which verifies them with the ``openai`` package."""

import asyncio
import dataclasses
import random
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from openai.types.webhooks import (
    BatchExpiredWebhookEvent,
    FineTuningJobSucceededWebhookEvent,
)
from webhook_parts import (
    KEY,
    SUCCEEDED,
    Receiver,
    an_endpoint,
    fact,
    local_destinations,
    receiving,
)

from millrace.gateway.v1 import events_pb2 as gateway
from millrace.topology import FACTS
from millrace.trainer.v1 import events_pb2 as trainer
from millrace_gateway.store import METADATA
from millrace_gateway.webhooks import event
from millrace_gateway.webhooks.deliver import Deliverer
from millrace_gateway.webhooks.domain import Endpoint, Status
from millrace_gateway.webhooks.post import KEPT_BODY_BYTES, Poster
from millrace_gateway.webhooks.queue import DeliveryQueue, Due
from millrace_gateway.webhooks.signing import SigningKey, load_key
from millrace_gateway.webhooks.store import WebhookStore
from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import InvalidArgument
from millrace_testkit.servers import free_port


class Offset:
    """The real time, which signatures are verified by, and what was waited for on top."""

    def __init__(self) -> None:
        self.waited = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.waited


class World:
    """A store, and a gateway that delivers from it when told to.

    Signatures are made by the real clock; what is due is told by one that waits for nothing.
    """

    def __init__(self, database: Database, timeout_seconds: float = 20.0, **settings: Any) -> None:
        self.clock = Offset()
        self.database = database
        self.store = WebhookStore(database, retention_seconds=1e6, now=self.clock)
        self.queue = DeliveryQueue(
            database, owner="elsewhere/1/1/1", lease_seconds=30, now=self.clock
        )
        self._settings = {
            "key": KEY,
            "delays_seconds": (5.0, 300.0),
            "concurrency": 4,
            "jitter": lambda: 1.0,
            **settings,
        }
        self._timeout_seconds = timeout_seconds

    def endpoint(self, receiver: Receiver, *patterns: str) -> Endpoint:
        made = an_endpoint(self.store, *patterns, url=receiver.url)
        receiver.secret = KEY.text(made.secrets[0])
        return made

    def attempt(self) -> None:
        """Make the attempt that is due."""

        async def attempt() -> None:
            due = self.queue.take()
            assert due is not None
            await self.deliverer().attempt(due)

        asyncio.run(attempt())

    def deliverer(self, queue: DeliveryQueue | None = None) -> Deliverer:
        poster = Poster(local_destinations(), self._timeout_seconds)
        return Deliverer(queue or self.queue, poster, **self._settings)

    def wait(self, seconds: float) -> None:
        self.clock.waited += timedelta(seconds=seconds)

    def only(self, endpoint: Endpoint) -> Any:
        (found,) = self.store.deliveries(endpoint.id, None, 5, "")
        return found

    def happens(self, message: Any = SUCCEEDED) -> None:
        self.store.record(fact(message, self.clock()))


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/gateway.db")
    METADATA.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def world(tables: Database) -> World:
    return World(tables)


def test_a_500_and_then_a_200(world: World) -> None:
    with receiving(statuses=[500]) as receiver:
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
        assert world.only(endpoint).status is Status.PENDING
        assert world.queue.take() is None, "it is due in 5 s"
        world.wait(6)
        world.attempt()
    assert not receiver.refused
    assert len(receiver.ids) == 2 and len(set(receiver.ids)) == 1
    first, second = receiver.events
    assert isinstance(first, FineTuningJobSucceededWebhookEvent) and first == second
    assert first.data.id == "ftjob-1" and first.id.startswith("evt_") and first.object == "event"
    delivery = world.only(endpoint)
    assert (delivery.id, delivery.status) == (receiver.ids[0], Status.DELIVERED)
    assert [one.status_code for one in delivery.attempts] == [500, 200]
    assert delivery.attempts[0].response_body == "thanks"
    assert first.id == delivery.event_id
    assert receiver.told[0]["content-type"] == "application/json"


@pytest.mark.parametrize("known", FACTS, ids=lambda known: known.type)
def test_every_fact_verifies(known: Any) -> None:
    """With its type: OpenAI's own class where there is one."""
    endpoint_secret = KEY.new_secret()
    receiver = Receiver(secret=KEY.text(endpoint_secret))
    now = datetime.now(UTC)
    body = event.document(fact(known.message(), now)).encode()
    endpoint = Endpoint("whe-1", "default", "", "", [], [endpoint_secret], now, now)
    assert receiver.take(body, KEY.headers(endpoint, "whd-1", body, now)) == 200
    (found,) = receiver.events
    assert found.type == event.type_of(known) and found.created_at == int(now.timestamp())
    told = (
        {"job.succeeded", "job.failed", "job.cancelled"}
        if known.producer == "tuner"
        else {f"batch.{end}" for end in ("completed", "failed", "cancelled", "expired")}
    )
    assert (found.type == known.type) == (known.fact not in told)


def test_events_of_our_own_and_of_batches(world: World) -> None:
    with receiving() as receiver:
        world.endpoint(receiver)
        world.happens(trainer.RunStarted(run="tenants/default/runs/run-1"))
        world.attempt()
        world.happens(gateway.BatchExpired(batch="tenants/default/batches/batch-1"))
        world.attempt()
    ours, batch = receiver.events
    assert ours.type == "millrace.trainer.v1.RunStarted"
    assert ours.data.run == "tenants/default/runs/run-1"
    assert isinstance(batch, BatchExpiredWebhookEvent) and batch.data.id == "batch-1"


def test_both_secrets_sign_for_a_day(world: World) -> None:
    with receiving() as receiver:
        endpoint = world.endpoint(receiver)
        newest = KEY.new_secret()
        world.store.rotate("default", endpoint.id, newest, keeps_old=True)
        world.happens()
        world.attempt()
        assert len(receiver.told[0]["webhook-signature"].split(" ")) == 2
        receiver.secret = KEY.text(newest)
        world.happens()
        world.attempt()
        assert len(receiver.events) == 2 and not receiver.refused


def test_another_secret_does_not_verify(world: World) -> None:
    with receiving() as receiver:
        endpoint = world.endpoint(receiver)
        receiver.secret = KEY.text(KEY.new_secret())
        world.happens()
        world.attempt()
    assert receiver.refused and not receiver.events
    assert world.only(endpoint).attempts[0].status_code == 401


@pytest.mark.parametrize("asked", ["4000", "date"])
def test_retry_after_is_honoured(world: World, asked: str) -> None:
    from email.utils import format_datetime

    later = datetime.now(UTC) + timedelta(seconds=4000)
    header = format_datetime(later, usegmt=True) if asked == "date" else asked
    with receiving(statuses=[503], headers={"Retry-After": header}) as receiver:
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
    due = world.only(endpoint).next_attempt_time
    assert timedelta(seconds=3900) < due - world.clock() <= timedelta(seconds=4000)


def test_410_disables_the_endpoint(world: World) -> None:
    with receiving(statuses=[410]) as receiver:
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
    found = world.store.get("default", endpoint.id)
    assert found is not None and found.disable_reason == "it answered 410 Gone"
    assert world.only(endpoint).status is Status.FAILED


def test_redirects_are_not_followed(world: World) -> None:
    with receiving() as elsewhere, receiving(statuses=[307]) as receiver:
        receiver.headers = {"Location": elsewhere.url}
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
        assert not elsewhere.events and not elsewhere.refused
    assert world.only(endpoint).attempts[0].status_code == 307
    assert world.only(endpoint).status is Status.PENDING


def test_all_attempts_fail(world: World) -> None:
    with receiving(statuses=[500] * 3) as receiver:
        endpoint = world.endpoint(receiver)
        world.happens()
        for delay_seconds in (5, 300, 0):
            world.attempt()
            world.wait(delay_seconds)
    assert world.only(endpoint).status is Status.FAILED
    found = world.store.get("default", endpoint.id)
    assert found is not None and not found.is_enabled, "it took nothing for a whole round"


def test_nobody_listens(world: World) -> None:
    receiver = Receiver(url=f"http://127.0.0.1:{free_port()}/")
    endpoint = world.endpoint(receiver)
    world.happens()
    world.attempt()
    (attempt,) = world.only(endpoint).attempts
    assert attempt.status_code is None and attempt.error.startswith("ConnectError")


def test_a_receiver_that_never_answers(tables: Database) -> None:
    world = World(tables, timeout_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        receiver = Receiver(url=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
    assert world.only(endpoint).attempts[0].error == "no answer within 0.2 s"


def test_a_large_answer_is_read_to_a_bound(world: World) -> None:
    with receiving(body=b"\x00" + b"x" * 1_000_000) as receiver:
        endpoint = world.endpoint(receiver)
        world.happens()
        world.attempt()
    kept = world.only(endpoint).attempts[0].response_body
    assert kept == "\ufffd" + "x" * (KEPT_BODY_BYTES - 1)


def test_a_key_that_was_changed_is_said(tables: Database) -> None:
    world = World(tables, key=SigningKey(b"another key of thirty-two bytes."))
    endpoint = world.endpoint(Receiver(url="http://127.0.0.1:9/"))
    world.happens()
    world.attempt()
    assert "rotate the endpoint's secret" in world.only(endpoint).attempts[0].error


def test_the_gateway_delivers_until_it_drains(world: World) -> None:
    """All that is due, some at a time; rung when there is more."""
    with receiving() as receiver:
        world.endpoint(receiver)
        for _ in range(6):
            world.happens()

        async def main() -> None:
            draining = asyncio.Event()
            deliverer = world.deliverer()
            running = asyncio.create_task(deliverer.run(draining))
            async with asyncio.timeout(60):
                while len(receiver.ids) < 6:
                    await asyncio.sleep(0.01)
                world.happens()
                deliverer.ring()
                while len(receiver.ids) < 7:
                    await asyncio.sleep(0.01)
                draining.set()
                await running

        asyncio.run(main())
    assert len(set(receiver.ids)) == 7 and world.store.count_by_status() == {"delivered": 7}


class SlowQueue(DeliveryQueue):
    """Waits before it takes."""

    entered: threading.Event
    proceed: threading.Event

    def take(self) -> Due | None:
        self.entered.set()
        assert self.proceed.wait(20)
        return super().take()


def test_what_is_taken_while_a_gateway_is_cancelled_is_given_back(world: World) -> None:
    world.endpoint(Receiver(url="http://127.0.0.1:9/"))
    world.happens()
    slow = SlowQueue(world.database, owner="elsewhere/1/1/1", lease_seconds=30)
    slow.entered, slow.proceed = threading.Event(), threading.Event()

    async def main() -> None:
        running = asyncio.create_task(world.deliverer(slow).run(asyncio.Event()))
        await asyncio.to_thread(slow.entered.wait, 20)
        running.cancel()
        await asyncio.sleep(0)
        slow.proceed.set()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert world.queue.take() is not None, "nobody waits for the lease"


def test_what_a_cancelled_gateway_had_under_way_is_given_back(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.endpoint(Receiver(url=f"http://127.0.0.1:{silent.getsockname()[1]}/"))
        world.happens()

        async def main() -> None:
            running = asyncio.create_task(world.deliverer().run(asyncio.Event()))
            loop = asyncio.get_running_loop()
            silent.setblocking(False)
            async with asyncio.timeout(60):
                connection, _ = await loop.sock_accept(silent)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            connection.close()

        asyncio.run(main())
    assert world.queue.take() is not None, "nobody waits for the lease"


def test_delays_grow_and_differ(tables: Database) -> None:
    dice = random.Random(7)
    world = World(tables, jitter=lambda: dice.uniform(0.9, 1.1))
    endpoint = world.endpoint(Receiver(url=f"http://127.0.0.1:{free_port()}/"))
    world.happens()
    world.attempt()
    due = (world.only(endpoint).next_attempt_time - world.clock()).total_seconds()
    assert 3 < due <= 5.5


def test_samples() -> None:
    now = datetime.now(UTC)
    assert '"data":{"id":"sample-' in event.sample("batch.completed", now)
    assert '"job":""' in event.sample("millrace.tuner.v1.JobStarted", now)
    with pytest.raises(InvalidArgument):
        event.sample("response.completed", now)


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "webhook-key"
    first = load_key(None, path)
    assert load_key(None, path).fingerprint == first.fingerprint
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["webhook-key"]
    assert load_key("g" * 32, path).fingerprint != first.fingerprint
    path.write_text("short")
    with pytest.raises(ValueError):
        load_key(None, path)


def test_secrets_are_not_in_what_is_kept(tables: Database) -> None:
    world = World(tables)
    endpoint = an_endpoint(world.store)
    secret = KEY.text(endpoint.secrets[0])
    assert secret not in str(dataclasses.asdict(endpoint)) and secret.startswith("whsec_")
    hint = KEY.hint(endpoint.secrets[0])
    assert hint is not None and len(hint) < 16 and secret.rstrip("=").endswith(hint[-4:])
