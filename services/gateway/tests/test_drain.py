"""SIGTERM under load: what was asked is answered, and what cannot be is told so."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace_testkit.servers import is_listening, wait_until

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
DRAIN_SECONDS = 1.5


@pytest.fixture
def draining(tmp_path: Path) -> Iterator[Mesh]:
    """A gateway of its own, to be drained."""
    mesh = Mesh(tmp_path, drain_seconds=DRAIN_SECONDS)
    mesh.start()
    yield mesh
    mesh.stop()


def begin_drain(mesh: Mesh) -> None:
    mesh.drain()
    wait_until(lambda: not is_listening(mesh.http_port), 5, "nothing more is accepted")


def test_an_idle_connection_is_answered_once_more_and_closed(draining: Mesh) -> None:
    client = draining.http()
    assert "connection" not in client.get("/v1/models").headers
    begin_drain(draining)
    last = client.get("/v1/models")
    assert (last.status_code, last.headers["connection"]) == (200, "close")
    with pytest.raises(httpx.ConnectError):
        client.get("/v1/models")


def test_a_connection_that_has_not_asked_yet_is_answered(draining: Mesh) -> None:
    with socket.create_connection(("127.0.0.1", draining.http_port)) as connection:
        time.sleep(0.1)  # it has been accepted
        begin_drain(draining)
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(1000)


def test_a_stream_that_ends_within_the_drain_is_whole(draining: Mesh) -> None:
    draining.triton.answer = Answer(["a", "b", "c"], pause_seconds=DRAIN_SECONDS / 4)
    stream = draining.openai().chat.completions.create(**CHAT, stream=True)
    draining.drain()
    text = [chunk.choices[0].delta.content for chunk in stream]
    assert "".join(part or "" for part in text) == "abc"


def test_a_stream_that_outlives_the_drain_ends_with_an_error(draining: Mesh) -> None:
    draining.triton.answer = Answer(["a"] * 100, pause_seconds=DRAIN_SECONDS / 4)
    stream = draining.openai().chat.completions.create(**CHAT, stream=True)
    draining.drain()
    received = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            received.append(chunk)
    assert received
    assert caught.value.code == "gateway_restarting"
    wait_until(lambda: draining.triton.running == 0, 5, "the engine was let go")


def test_an_answer_that_outlives_the_drain_is_a_503(draining: Mesh) -> None:
    draining.triton.answer = Answer(["a"] * 100, pause_seconds=DRAIN_SECONDS / 4)
    drains = threading.Timer(0.3, draining.drain)
    drains.start()
    with pytest.raises(openai.InternalServerError) as caught:
        draining.openai().chat.completions.create(**CHAT)
    drains.join()
    assert caught.value.status_code == 503
    assert caught.value.code == "gateway_restarting"
