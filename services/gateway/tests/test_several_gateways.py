"""Two gateway processes at one PostgreSQL, before the same two Tritons, as ``openai`` sees them."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from gateway_fakes import Answer
from gateway_process import TUNED, GatedTriton, Gateway, Services
from sqlalchemy import text
from test_batches import CHAT, ended, jsonl, line, read, upload

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_runtime.database import open_database
from millrace_testkit.servers import wait_until

MESSAGES: Any = [{"role": "user", "content": "x"}]
PIECES = ["one ", "two ", "three"]
ANSWERED = 'millrace_batch_lines_total{outcome="completed"}'
PLACES = 4  # at each Triton, of all gateways together
SETTINGS = {
    "ENDPOINT_GENERATIONS": str(PLACES),
    "DEFAULT_PRIORITY_SHARE": "1",
    "LOW_PRIORITY_SHARE": "1",
    "LOW_PRIORITY_QUEUE": "0",  # what finds no place is refused at once
    "QUEUE_SECONDS": "120",
    "BATCH_CONCURRENCY": "2",
}


@dataclass
class World:
    services: Services
    gateways: list[Gateway]

    @property
    def tritons(self) -> list[GatedTriton]:
        return self.services.tritons

    def hold(self, is_held: bool) -> None:
        for triton in self.tritons:
            triton.is_held = is_held

    def running(self) -> list[int]:
        return [triton.running for triton in self.tritons]

    def revive(self) -> None:
        """Let both gateways run and know of each other."""
        dead = [gateway for gateway in self.gateways if not gateway.is_alive]
        for gateway in dead:
            gateway.launch()
        for gateway in dead:
            gateway.await_answers()
        for gateway in self.gateways:
            sees(gateway, len(self.gateways))


def sees(gateway: Gateway, count: int) -> None:
    wait_until(lambda: gateway.metric("millrace_gateways") == count, 60, f"{count} gateways")


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty schema: a SQLite database is for one process."""
    schema = f"test_{uuid.uuid4().hex[:12]}"
    administration = open_database(postgres_url)
    with administration.transaction() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield f"{postgres_url}?options=-csearch_path%3D{schema}"
    with administration.transaction() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    administration.close()


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[World]:
    folder, services = tmp_path_factory.mktemp("gateways"), Services(tritons=2)
    wanted = {**SETTINGS, "DATABASE_URL": database_url}
    world = World(services, [Gateway(folder, services, **wanted) for _ in range(2)])
    try:
        world.revive()
        yield world
    finally:
        for gateway in world.gateways:
            if gateway.is_alive:
                gateway.kill()
        services.end()


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    for triton in shared_world.tritons:
        triton.reset()
        triton.answer = Answer(PIECES)
    shared_world.revive()
    yield shared_world
    shared_world.hold(False)
    wait_until(lambda: shared_world.running() == [0, 0], 60, "nothing runs")


def new_key(world: World, **limits: Any) -> tuple[str, str]:
    """Its id and its secret."""
    body = {"tenant": "default", "display_name": "", "role": "member", **limits}
    with world.gateways[0].http() as http:
        made = http.post("/v1/keys", json=body).raise_for_status().json()
    return made["id"], made["secret"]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="demo", messages=MESSAGES, **options)


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def outcomes(working: list[Future[int]]) -> list[int]:
    wait(working, 120)
    return [one.result(0) for one in working]


def counted(count: Callable[[], int]) -> Callable[[], int]:
    """How much has been added to ``count`` from now on."""
    before = count()
    return lambda: count() - before


def is_refused(client: openai.OpenAI, **options: Any) -> bool:
    try:
        ask(client, stream=True, **options).close()
    except openai.RateLimitError:
        return True
    return False


def held_streams(client: openai.OpenAI, count: int, **options: Any) -> list[Any]:
    """Streams that have begun, and stand still."""
    return [ask(client, stream=True, **options) for _ in range(count)]


def test_of_gateways_that_start_together_one_makes_the_first_key(world: World) -> None:
    for gateway in world.gateways:
        with gateway.http() as http:
            keys = http.get("/v1/keys", params={"tenant": "default"}).json()["data"]
        assert [key["display_name"] for key in keys if key["role"] == "operator"] == [
            "first operator key"
        ]


def test_load_is_spread_and_never_above_an_engines_places(world: World) -> None:
    """16 clients at once for 8 places; nobody is refused, since the rest may wait."""
    for triton in world.tritons:
        triton.answer = Answer(PIECES, pause_seconds=0.005)
    each = 8

    def work(number: int) -> list[str]:
        with world.gateways[number % 2].client() as client:
            streamed = [text_of(ask(client, stream=True)) for _ in range(each // 2)]
            whole = [ask(client) for _ in range(each // 2)]
            return streamed + [one.choices[0].message.content for one in whole]

    with ThreadPoolExecutor(16) as pool:
        answers = [answer for answers in pool.map(work, range(16)) for answer in answers]
    assert answers == ["".join(PIECES)] * 16 * each
    asked = [len(triton.requests) for triton in world.tritons]
    assert sum(asked) == len(answers) and min(asked) >= len(answers) // 4
    assert all(triton.most <= PLACES for triton in world.tritons)


def test_places_are_shared(world: World) -> None:
    world.hold(True)
    with ExitStack() as clients:
        one, other = (
            clients.enter_context(gateway.client(max_retries=0)) for gateway in world.gateways
        )
        streams = [held_streams(client, PLACES, service_tier="flex") for client in (one, other)]
        assert world.running() == [PLACES, PLACES]
        assert is_refused(one, service_tier="flex") and is_refused(other, service_tier="flex")
        world.hold(False)
        texts = [text_of(stream) for begun in streams for stream in begun]
    assert texts == ["".join(PIECES)] * 2 * PLACES


def test_a_keys_limits_are_shared(world: World) -> None:
    """Of 5 requests a minute each gateway lets 3 through at once, and then one every 20 s."""
    _, secret = new_key(world, requests_per_minute=5)
    start = time.monotonic()

    def begun(gateway: Gateway) -> int:
        with gateway.client(secret, max_retries=0) as client:
            return sum(not is_refused(client) for _ in range(8))

    with ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(begun, world.gateways * 2))
    refilled = 2 * 3 * (time.monotonic() - start) / 60
    assert 6 <= total <= 6 + refilled


def test_concurrent_generations_of_a_key_are_shared(world: World) -> None:
    _, secret = new_key(world, concurrent_generations=3)
    world.hold(True)
    with ExitStack() as clients:
        for gateway in world.gateways:
            client = clients.enter_context(gateway.client(secret, max_retries=0))
            for stream in held_streams(client, 2):
                clients.callback(stream.close)
            assert is_refused(client)
        assert sum(world.running()) == 4


def test_a_key_that_is_revoked_at_one_is_refused_at_the_other(world: World) -> None:
    identifier, secret = new_key(world)
    with world.gateways[1].client(secret, max_retries=0) as client:
        ask(client)
        with world.gateways[0].http() as http:
            http.delete(f"/v1/keys/{identifier}", params={"tenant": "default"}).raise_for_status()

        def is_unknown() -> bool:
            try:
                ask(client)
            except openai.AuthenticationError:
                return True
            return False

        wait_until(is_unknown, 30, "the key is refused")
        assert all(is_unknown() for _ in range(3))


def test_a_permission_that_one_takes_back_is_refused_at_the_other(world: World) -> None:
    registry, name = world.services.registry, f"tenants/default/models/{TUNED}/versions/1"
    made_of = compressor_pb2.CheckpointReference(name="tenants/default/jobs/j/checkpoints/c")
    registry.versions[name] = registry_pb2.Version(name=name, checkpoint=made_of)
    with world.gateways[0].http() as http:
        secret = http.post("/v1/keys", json={"tenant": "acme"}).raise_for_status().json()["secret"]
        place = f"/v1/fine_tuning/checkpoints/{TUNED}/permissions"
        asked = http.post(place, json={"project_ids": ["acme"]}).raise_for_status().json()
        with world.gateways[1].client(secret, max_retries=0) as client:

            def may_ask() -> bool:
                try:
                    client.chat.completions.create(model=TUNED, messages=MESSAGES)
                except openai.NotFoundError:
                    return False
                return True

            wait_until(may_ask, 30, "the project may ask")
            http.delete(f"{place}/{asked['data'][0]['id']}").raise_for_status()
            wait_until(lambda: not may_ask(), 30, "the project may not ask")


def test_the_other_goes_on_when_one_is_killed(world: World) -> None:
    """Under load: what the other has taken is answered whole, and then it has all places."""
    doomed, other = world.gateways
    world.hold(True)
    stop = threading.Event()

    def work() -> int:
        """Ask until told to stop; how often that was answered in whole."""
        count = 0
        with other.client(max_retries=0) as client:
            while not stop.is_set() or not count:
                assert text_of(ask(client, stream=True)) == "".join(PIECES)
                count += 1
        return count

    with ExitStack() as clients:
        lost = held_streams(clients.enter_context(doomed.client(max_retries=0)), 3)
        kept = held_streams(clients.enter_context(other.client(max_retries=0)), 2)
        with ThreadPoolExecutor(6) as pool, ExitStack() as ending:
            ending.callback(stop.set)
            ending.callback(world.hold, False)
            working = [pool.submit(work) for _ in range(6)]
            wait_until(lambda: sum(world.running()) == 3 + PLACES, 60, "all its places are taken")
            doomed.kill()
            wait_until(lambda: world.running() == [PLACES] * 2, 60, "it has all places")
            world.hold(False)
            assert [text_of(stream) for stream in kept] == ["".join(PIECES)] * 2
            stop.set()
            assert all(count > 0 for count in outcomes(working))
        for stream in lost:
            with pytest.raises(openai.APIConnectionError):
                text_of(stream)
    assert other.metric("millrace_gateways") == 1


def test_a_batch_goes_on_in_the_other(world: World) -> None:
    lines, is_late = 16, threading.Event()
    is_late.set()
    asked = counted(lambda: sum(len(triton.requests) for triton in world.tritons))

    def answer_to(request: dict[str, Any]) -> Answer:
        late = is_late.is_set() and asked() > lines // 2
        return Answer([request["prompt"]], pause_seconds=600 if late else 0)

    for triton in world.tritons:
        triton.answer_to = answer_to
    with world.gateways[0].client() as client:
        made = client.batches.create(
            input_file_id=upload(client, jsonl([line(n) for n in range(lines)])),
            endpoint=CHAT,
            completion_window="24h",
        )
    wait_until(lambda: asked() == lines // 2 + 2, 60, "two of the second half are under way")
    done = [lambda one=one: one.metric(ANSWERED) for one in world.gateways]
    wait_until(lambda: sum(each() for each in done) == lines // 2, 60, "the first half is kept")
    runs, other = world.gateways if done[0]() else world.gateways[::-1]
    runs.kill()
    is_late.clear()
    with other.client() as client:
        batch = ended(client, made)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.completed == lines
        output = read(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(lines)]
    assert asked() == lines + 2, "what was answered is not asked again"
