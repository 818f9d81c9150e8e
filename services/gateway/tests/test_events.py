"""``/v1/events`` against a real nats-server: replay, filters, Last-Event-ID, restarts."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_mesh import OPERATOR, Mesh

from millrace.data.v1 import events_pb2 as data_events
from millrace.topology import consumed_by
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace_gateway.domain import Role
from millrace_gateway.events import SUBSCRIPTIONS
from millrace_gateway.history import Selection, position
from millrace_gateway.store import OUTBOX
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.outbox import Outbox
from millrace_testkit.servers import NatsServer, wait_until


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def live(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gateway connected to NATS; the facts of other services come through its own outbox."""
    mesh = Mesh(tmp_path_factory.mktemp("live"), nats_url=nats.url, event_heartbeat_seconds=0.3)
    mesh.start()
    wait_until(lambda: mesh.http().get("/v1/events?follow=false").status_code == 200, 30, "NATS")
    yield mesh
    mesh.stop()


def record(mesh: Mesh, message: Any, tenant: str = "default") -> str:
    outbox = Outbox(OUTBOX, lambda: datetime.now(UTC))
    with mesh.database.transaction() as connection:
        identifier = outbox.record(connection, tenant, message)
    mesh.relay.ring()
    return identifier


def uploaded(number: int) -> data_events.FileUploaded:
    return data_events.FileUploaded(file=f"tenants/default/files/file-{number}")


def read(mesh: Mesh, query: str = "", secret: str = "", **headers: str) -> list[dict[str, Any]]:
    """All events that there are, each with its CloudEvent under ``document``."""
    response = mesh.http(secret or None, **headers).get(f"/v1/events?follow=false&{query}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text)


def parse(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            event = dict(line.split(": ", 1) for line in lines)
            events.append({**event, "document": json.loads(event["data"])})
    return events


def wait_for(mesh: Mesh, identifier: str) -> None:
    wait_until(
        lambda: identifier in [event["id"] for event in read(mesh)], 20, "the fact is published"
    )


def test_the_history_from_the_beginning_and_from_after_an_event(live: Mesh) -> None:
    ids = [record(live, uploaded(number)) for number in range(5)]
    wait_for(live, ids[-1])
    events = read(live)
    assert [event["id"] for event in events if event["id"] in ids] == ids
    last = next(event for event in events if event["id"] == ids[-1])
    assert last["event"] == "data.file.uploaded"
    assert last["document"]["type"] == "millrace.data.v1.FileUploaded"
    assert last["document"]["tenant"] == "default"
    for index, identifier in enumerate(ids):
        rest = read(live, **{"last-event-id": identifier})
        assert [event["id"] for event in rest] == ids[index + 1 :]
    assert [event["id"] for event in read(live, f"after={ids[3]}")] == ids[4:]


def test_filters(live: Mesh) -> None:
    file = record(live, uploaded(77))
    run = record(live, trainer_events.RunStarted(run="tenants/default/runs/run-1"))
    done = record(live, trainer_events.RunSucceeded(run="tenants/default/runs/run-1"))
    wait_for(live, done)
    assert [e["id"] for e in read(live, "stage=trainer")] == [run, done]
    assert [e["id"] for e in read(live, "fact=run.started")] == [run]
    assert [e["id"] for e in read(live, "fact=run.started&fact=run.succeeded")] == [run, done]
    assert [e["id"] for e in read(live, f"stage=trainer,data&after={file}")] == [run, done]
    # The position's own fact need not pass the filter.
    assert [e["id"] for e in read(live, f"fact=run.succeeded&after={file}")] == [done]


def test_a_tenant_sees_its_own_alone(live: Mesh) -> None:
    mine = record(live, uploaded(1), tenant="acme")
    theirs = record(live, uploaded(2), tenant="default")
    wait_for(live, theirs)
    seen = [event["id"] for event in read(live, secret=live.other_secret)]
    assert mine in seen and theirs not in seen
    assert mine not in [event["id"] for event in read(live)]


@pytest.mark.parametrize(
    "query", ["stage=kitchen", "fact=run.danced", "after=nonsense", "follow=perhaps", "stage=*"]
)
def test_mistakes(live: Mesh, query: str) -> None:
    response = live.http().get(f"/v1/events?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("stage", "fact", "last_event_id", "follow")


class Follower:
    """Follows the stream in a thread."""

    def __init__(self, mesh: Mesh, **headers: str) -> None:
        self.text = ""
        self.ended = False
        self._client = mesh.http(**headers)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.stream("GET", "/v1/events", timeout=30) as response:
                for text in response.iter_text():
                    self.text += text
            self.ended = True
        except httpx.HTTPError:
            return

    @property
    def ids(self) -> list[str]:
        complete = self.text[: self.text.rfind("\n\n") + 2]
        return [event["id"] for event in parse(complete)]

    def join(self) -> None:
        self._client.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_following_with_heartbeats_over_a_restart_of_nats(nats: NatsServer, tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, nats_url=nats.url, event_heartbeat_seconds=0.3)
    mesh.start()
    wait_until(lambda: mesh.http().get("/v1/events?follow=false").status_code == 200, 30, "NATS")
    first = record(mesh, uploaded(100))
    wait_for(mesh, first)
    follower = Follower(mesh, **{"last-event-id": first})
    wait_until(lambda: ": heartbeat" in follower.text, 20, "a heartbeat")
    second = record(mesh, uploaded(101))
    wait_until(lambda: follower.ids == [second], 20, "the new fact")
    nats.kill()
    third = record(mesh, uploaded(102))
    nats.start()
    wait_until(lambda: follower.ids == [second, third], 45, "the fact from meanwhile")
    mesh.drain()
    wait_until(lambda: follower.ended, 20, "draining ends the stream properly")
    follower.join()
    mesh.stop()


def test_a_stream_made_anew_is_read_by_the_same_positions(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    server.start()
    mesh = Mesh(tmp_path, nats_url=server.url)
    mesh.start()
    try:
        wait_until(
            lambda: mesh.http().get("/v1/events?follow=false").status_code == 200, 30, "NATS"
        )
        ids = [record(mesh, uploaded(number)) for number in range(3)]
        wait_for(mesh, ids[-1])
        before = [event["id"] for event in read(mesh)]
        server.kill()
        assert mesh.http().get("/v1/events?follow=false").status_code == 503
        server.forget()
        server.start()

        def is_back() -> bool:
            response = mesh.http().get("/v1/events?follow=false")
            return response.status_code == 200 and ids[-1] in response.text

        wait_until(is_back, 45, "the history is published again")
        assert [event["id"] for event in read(mesh)] == before
        assert [event["id"] for event in read(mesh, f"after={ids[0]}")] == ids[1:]
    finally:
        mesh.stop()
        server.kill()


def test_the_gateways_own_facts(live: Mesh) -> None:
    key, _ = live.keys.create(OPERATOR, "default", "", Role.MEMBER)
    wait_until(lambda: key.id in json.dumps(read(live, "stage=gateway")), 20, "key.created")


def test_without_nats(mesh: Mesh) -> None:
    response = mesh.http().get("/v1/events")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "events_unavailable"


def test_the_gateway_consumes_nothing() -> None:
    """It reads the whole stream for its users, and acts on no fact."""
    assert SUBSCRIPTIONS == consumed_by("gateway") == ()


def test_selection() -> None:
    assert Selection("t").subject == "millrace.t.*.>"
    one = Selection("t", frozenset({"data"}), frozenset({"file.uploaded"}))
    assert one.subject == "millrace.t.data.file.uploaded"
    assert one.wants("millrace.t.data.file.uploaded")
    assert not one.wants("millrace.t.data.dataset.ready")


@pytest.mark.parametrize("identifier", ["", "x", "fact-" + "u" * 26, "fact-" + "z" * 26])
def test_positions_that_are_none(identifier: str) -> None:
    with pytest.raises(InvalidArgument):
        position(identifier)
