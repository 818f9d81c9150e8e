"""What happens to a completion when engines fail, clients leave, and routes change."""

import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from gateway_fakes import DIGEST, Answer
from gateway_mesh import Mesh

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_testkit.servers import free_port, wait_until

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def target(mesh: Mesh, version: int, share: float, *endpoints: str) -> Any:
    return registry_pb2.RouteTarget(
        version=version,
        share=share,
        endpoints=endpoints or [mesh.triton_address],
        artifact_digest=DIGEST,
        chat_template="{{ messages[0].content }}" + f"v{version}",
    )


def serve(mesh: Mesh, *targets: Any) -> None:
    route = registry_pb2.Route(
        tenant="default", model="demo", triton_model="default.demo", targets=targets
    )
    mesh.serve_routes([route])


def test_traffic_follows_the_shares(mesh: Mesh) -> None:
    serve(mesh, target(mesh, 1, 0.75), target(mesh, 2, 0.25))
    client = mesh.http()
    for _ in range(120):
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    asked = Counter(request["version"] for request in mesh.triton.requests)
    # 120 draws at 0.25: mean 30, standard deviation 4.7.
    assert 10 <= asked["2"] <= 50
    assert asked["1"] + asked["2"] == 120


def test_each_version_gets_its_own_template(mesh: Mesh) -> None:
    serve(mesh, target(mesh, 1, 1.0), target(mesh, 2, 0.0))
    answer = mesh.http().post("/v1/chat/completions", json={**CHAT, "model": "demo@2"})
    assert answer.headers["x-millrace-version"] == "demo@2"
    mesh.http().post("/v1/chat/completions", json=CHAT)
    assert [request["prompt"] for request in mesh.triton.requests] == ["xv2", "xv1"]


def test_a_version_that_cannot_be_reached_is_passed_over(mesh: Mesh) -> None:
    dead = f"127.0.0.1:{free_port()}"
    serve(mesh, target(mesh, 1, 0.999, dead), target(mesh, 2, 0.001))
    answer = mesh.http().post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert answer.headers["x-millrace-version"] == "demo@2"


def on_trial(mesh: Mesh, *endpoints: str, model: str = "demo", template: str = "") -> None:
    """Version 2 gets nearly all requests, beside the champion."""
    new = target(mesh, 2, 0.99, *endpoints)
    new.chat_template = template or new.chat_template
    route = registry_pb2.Route(
        tenant="default",
        model=model,
        triton_model="default.demo",
        targets=[target(mesh, 1, 0.01), new],
        aliases={"champion": 1},
    )
    mesh.serve_routes([route])


def failures_of(mesh: Mesh, model: str) -> dict[int, int]:
    """By version, as the registry has heard."""
    newest = mesh.registry.reports[-1].answers if mesh.registry.reports else []
    return {each.version: each.failures for each in newest if each.model == model}


def test_what_a_version_on_trial_fails_the_champion_answers(mesh: Mesh) -> None:
    """Also when it has several endpoints; and a request for that version alone fails."""
    on_trial(mesh, *(f"127.0.0.1:{free_port()}" for _ in range(3)))
    for stream in (False, True):
        answer = mesh.http().post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert answer.status_code == 200
    assert {request["version"] for request in mesh.triton.requests} == {"1"}
    pinned = mesh.http().post("/v1/chat/completions", json={**CHAT, "model": "demo@2"})
    assert pinned.status_code == 503


@pytest.mark.parametrize(
    ("model", "template"), [("broken", "{% for"), ("refusing", "{{ raise_exception('no') }}")]
)
def test_a_template_that_refuses_alone_is_the_versions_failure(
    mesh: Mesh, model: str, template: str
) -> None:
    on_trial(mesh, model=model, template=template)
    answer = mesh.http().post("/v1/chat/completions", json={**CHAT, "model": model})
    assert answer.status_code == 200
    assert [request["version"] for request in mesh.triton.requests] == ["1"]
    wait_until(lambda: failures_of(mesh, model) == {1: 0, 2: 1}, 10, "the report")


def test_what_both_templates_refuse_is_the_clients_mistake(mesh: Mesh) -> None:
    on_trial(mesh)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = mesh.http().post("/v1/chat/completions", json={**CHAT, "tools": tools})
    assert answer.status_code == 400
    assert not mesh.triton.requests


def test_a_stale_route_is_asked_again_once_it_is_fresh(mesh: Mesh) -> None:
    """The version was unloaded; the table that says so comes while the request waits."""
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.UNAVAILABLE, "not ready"))

    async def recover() -> None:
        async def later() -> None:
            await asyncio.sleep(0.1)
            mesh.triton.answer = Answer(["ok"])
            mesh.registry.set_routes([mesh.route(version=2)])

        mesh.recovery = asyncio.ensure_future(later())  # type: ignore[attr-defined]

    mesh.in_loop(recover)
    started = time.monotonic()
    answer = mesh.http().post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-millrace-version"] == "demo@2"
    assert time.monotonic() - started < 0.9, "the fresh table is used as soon as it is there"


def test_an_engine_that_stays_away(mesh: Mesh) -> None:
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.UNAVAILABLE, "gone"))
    answer = mesh.http().post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "server_error"
    assert len(mesh.triton.requests) == 2, "asked once more, and no oftener"


def test_a_mistake_is_not_asked_again(mesh: Mesh) -> None:
    message = "the prompt's 600 tokens fill the context of 512"
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, message))
    with pytest.raises(openai.BadRequestError, match="600 tokens") as caught:
        mesh.openai().chat.completions.create(**CHAT)
    assert caught.value.code == "context_length_exceeded"
    assert len(mesh.triton.requests) == 1


def test_breaking_off_in_a_stream_is_said_in_the_stream(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["a", "b"], failure=(grpc.StatusCode.INTERNAL, "the engine died"))
    stream = mesh.openai().chat.completions.create(**CHAT, stream=True)
    texts: list[str | None] = []
    with pytest.raises(openai.APIError, match="the engine died"):
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "a", "b"]
    assert len(mesh.triton.requests) == 1, "after the first token nothing is asked again"


def test_breaking_off_without_a_stream(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["a"], failure=(grpc.StatusCode.INTERNAL, "the engine died"))
    assert mesh.http().post("/v1/chat/completions", json=CHAT).status_code == 503


def send(mesh: Mesh, body: dict[str, Any]) -> socket.socket:
    """Send a request by hand, so that the connection can be cut at will."""
    connection = socket.create_connection(("127.0.0.1", mesh.http_port))
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {mesh.member_secret}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_stops_the_engine(mesh: Mesh, streams: bool) -> None:
    mesh.triton.answer = Answer(["x"] * 1000, pause_seconds=0.02)
    connection = send(mesh, {**CHAT, "stream": streams})
    wait_until(lambda: mesh.triton.running == 1, 5, "the engine runs")
    if streams:
        assert b"200 OK" in connection.recv(4096)
    connection.close()
    wait_until(lambda: mesh.triton.cancelled == 1, 2, "the engine is told")
    assert mesh.triton.running == 0
    metrics = mesh.http().get("/metrics").text
    assert "millrace_generations_active 0.0" in metrics


def test_a_client_that_leaves_before_the_first_token(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["x"], pause_seconds=30)
    connection = send(mesh, {**CHAT, "stream": True})
    wait_until(lambda: mesh.triton.running == 1, 5, "the engine runs")
    connection.close()
    wait_until(lambda: mesh.triton.running == 0, 2, "the engine is told")
    wait_until(
        lambda: "millrace_generations_active 0.0" in mesh.http().get("/metrics").text, 2, "over"
    )


def test_a_silent_engine_is_given_up(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, engine_silence_seconds=0.4)
    mesh.start()
    try:
        client = mesh.http()
        mesh.triton.answer = Answer(["slow"] * 5, pause_seconds=0.2)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200, "slow, not dead"
        mesh.triton.answer = Answer(["x"], pause_seconds=60)
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503
        assert "silent" in answer.json()["error"]["message"]
        mesh.triton.answer = Answer(["a", "b"], pauses=[0, 60])
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as told:
            lines = [line for line in told.iter_lines() if line]
        assert told.status_code == 200
        assert "silent" in lines[-1]
        wait_until(lambda: mesh.triton.running == 0, 2, "the engine is told")
    finally:
        mesh.stop()


def test_the_registry_hears_how_each_version_answers(mesh: Mesh) -> None:
    reports = mesh.registry.reports
    client = mesh.http()

    def counted() -> list[tuple[int, int, int, int]]:
        newest = reports[-1].answers if reports else []
        ours = [answers for answers in newest if answers.model == "counted"]
        return [(a.version, a.requests, a.failures, a.tokens) for a in ours]

    body = {**CHAT, "model": "counted"}
    mesh.serve_routes([mesh.route("counted", version=7)])
    for _ in range(3):
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    mesh.triton.answer = Answer(["a"], failure=(grpc.StatusCode.INTERNAL, "died"))
    assert client.post("/v1/chat/completions", json=body).status_code == 503
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, "your mistake"))
    assert client.post("/v1/chat/completions", json=body).status_code == 400
    wait_until(lambda: counted() == [(7, 4, 1, 9)], 3, "the report")
    assert len({report.gateway for report in reports}) == 1
    first_token = [a.first_token_seconds for a in reports[-1].answers if a.model == "counted"]
    assert 0 < first_token[0] < 3
