"""``/v1/dead_letters`` against a real nats-server, with a real consumer behind."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from gateway_mesh import Mesh

from millrace.data.v1 import events_pb2
from millrace.topology import STREAM, fact_of
from millrace_runtime import bus, cloudevent, names
from millrace_runtime.bus import Consumer, PoisonFact, Subscription
from millrace_runtime.cloudevent import Event
from millrace_testkit.servers import NatsServer, wait_until

PATH = "/v1/dead_letters"


class Stage:
    """The trainer's place: refuses what is in ``poison``, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.poison: set[str] = set()
        self.seen: list[str] = []
        self._url = url
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._ready = threading.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def publish(self, payload: bytes, tenant: str = "default") -> None:
        subject = f"millrace.{tenant}.data.dataset.ready"
        publishing = self._client.jetstream().publish(subject, payload, stream=STREAM)
        asyncio.run_coroutine_threadsafe(publishing, self._loop).result(10)

    def _handle(self, event: Event) -> None:
        assert isinstance(event.message, events_pb2.DatasetReady)
        name = event.message.dataset
        if name in self.poison:
            raise PoisonFact(f"{name} is poison")
        self.seen.append(name)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._client = await bus.connect_patiently(self._url, "stage")
        await bus.ensure_streams(self._client.jetstream())
        consumer = Consumer("trainer", [Subscription(events_pb2.DatasetReady, self._handle)])
        task = asyncio.create_task(consumer.run(self._client))
        self._ready.set()
        await self._stop.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._client.close()


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def live(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("live"), nats_url=nats.url)
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def stage(live: Mesh, nats: NatsServer) -> Iterator[Stage]:
    """A stage, and no letters before or after."""
    started = Stage(nats.url)
    started.start()
    wait_until(lambda: live.http().get(PATH).status_code == 200, 20, "NATS")
    yield started
    for tenant in ("default", "acme"):
        client = live.http(live.operator_secret)
        for letter in client.get(PATH, params={"tenant": tenant}).json()["data"]:
            client.delete(f"{PATH}/{letter['id']}", params={"tenant": tenant})
    started.stop()


def ready(name: str, tenant: str = "default") -> bytes:
    message = events_pb2.DatasetReady(dataset=name)
    fact = names.new_id("fact")
    event = Event(fact, fact_of(type(message)), tenant, message, datetime.now(UTC))
    return cloudevent.to_json(event).encode()


def letters(client: httpx.Client, count: int, **query: Any) -> list[dict[str, Any]]:
    """The list, once it holds so many."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        response = client.get(PATH, params=query)
        assert response.status_code == 200, response.text
        found[:] = response.json()["data"]
        return len(found) == count

    wait_until(are_there, 20, f"{count} dead letters")
    return found


def refuse(stage: Stage, live: Mesh, name: str) -> dict[str, Any]:
    stage.poison.add(name)
    stage.publish(ready(name))
    return letters(live.http(), 1)[0]


def test_a_refused_fact_is_shown_with_its_reason(live: Mesh, stage: Stage) -> None:
    letter = refuse(stage, live, "bad")
    assert letter["object"] == "dead_letter"
    assert (letter["consumer"], letter["status"], letter["tenant"]) == (
        "trainer",
        "refused",
        "default",
    )
    assert letter["error"] == {"code": "PoisonFact", "message": "bad is poison", "param": None}
    assert (letter["fact"], letter["deliveries"]) == ("data.dataset.ready", 1)
    assert letter["event"]["data"] == {"dataset": "bad"}
    assert letter["payload"] is None
    assert live.http().get(f"{PATH}/{letter['id']}").json() == letter


@pytest.mark.parametrize(
    "payload", [b"no JSON", b"\xff", b'{"id": NaN}', b'{"id": "\\ud800"}', b"[" * 5000]
)
def test_what_is_no_event_is_shown_as_text(live: Mesh, stage: Stage, payload: bytes) -> None:
    stage.publish(payload)
    letter = letters(live.http(), 1)[0]
    assert (letter["event"], letter["payload"]) == (None, payload.decode(errors="replace"))
    assert letter["error"]["code"] == "MalformedEvent"


def test_a_replay_that_succeeds_and_one_that_fails(live: Mesh, stage: Stage) -> None:
    letter = refuse(stage, live, "again")
    replayed = live.http().post(f"{PATH}/{letter['id']}/replay", json={})
    assert (replayed.status_code, replayed.json()["status"]) == (200, "replaying")
    wait_until(lambda: letters(live.http(), 1)[0]["status"] == "refused", 10, "refused again")
    stage.poison.clear()
    assert live.http().post(f"{PATH}/{letter['id']}/replay").status_code == 200
    letters(live.http(), 0)
    assert stage.seen == ["again"]
    assert live.http().post(f"{PATH}/{letter['id']}/replay").status_code == 404


def test_a_letter_that_is_given_up(live: Mesh, stage: Stage) -> None:
    letter = refuse(stage, live, "hopeless")
    answer = live.http().delete(f"{PATH}/{letter['id']}")
    assert answer.json() == {"id": letter["id"], "object": "dead_letter", "deleted": True}
    letters(live.http(), 0)
    assert live.http().delete(f"{PATH}/{letter['id']}").status_code == 404


def test_pages(live: Mesh, stage: Stage) -> None:
    for number in range(5):
        stage.publish(b"%d" % number)
    letters(live.http(), 5)
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    query: dict[str, Any] = {"limit": 2}
    while page["has_more"]:
        page = live.http().get(PATH, params=query).json()
        seen += [letter["payload"] for letter in page["data"]]
        query["after"] = page["last_id"]
    assert seen == ["4", "3", "2", "1", "0"]


def test_a_tenant_sees_its_own_alone_and_an_operator_any(live: Mesh, stage: Stage) -> None:
    stage.publish(b"theirs", tenant="acme")
    operator, other = live.http(live.operator_secret), live.http(live.other_secret)
    letter = letters(other, 1)[0]
    assert letters(operator, 1, tenant="acme") == [letter]
    assert letters(live.http(), 0) == []
    for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        url = f"{PATH}/{letter['id']}{path}"
        assert live.http().request(method, url).status_code == 404
        refused = live.http().request(method, url, params={"tenant": "acme"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            403,
            "operator_key_required",
        )
    assert operator.delete(f"{PATH}/{letter['id']}", params={"tenant": "acme"}).status_code == 200


@pytest.mark.parametrize("identifier", ["letter-none", "*", ">", "a.b", "%2A", "letter-%3E"])
def test_letters_that_there_are_not(live: Mesh, stage: Stage, identifier: str) -> None:
    refuse(stage, live, "bystander")
    for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        response = live.http().request(method, f"{PATH}/{identifier}{path}")
        assert response.status_code == 404
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert len(letters(live.http(), 1)) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [("after=letter-none", 400), ("after=*", 404), ("limit=0", 400), ("tenant=*", 400)],
)
def test_mistakes(live: Mesh, stage: Stage, query: str, status: int) -> None:
    response = live.http().get(f"{PATH}?{query}")
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_without_nats_it_says_to_try_again(mesh: Mesh) -> None:
    response = mesh.http().get(PATH)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "events_unavailable")
