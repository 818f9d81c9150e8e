"""Clients that ask and do not read: what becomes of the others, of the gateway, and of them."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
SLOW, QUICK = 8, 20
# More than the kernel holds between two sockets, some 3 MB.
PIECE, PIECES = "x" * 16_384, 600


class Told(list[str]):
    """Pieces of an answer, and how many of them the engine has said."""

    said = 0

    def __iter__(self) -> Iterator[str]:
        for piece in super().__iter__():
            self.said += 1
            yield piece


@pytest.fixture
def told(mesh: Mesh) -> list[Told]:
    """The long answers that the engine has begun."""
    begun: list[Told] = []

    def answer_to(request: dict[str, Any]) -> Answer:
        if "slow" not in request["prompt"]:
            return Answer(["quick"])
        begun.append(Told([PIECE] * PIECES))
        return Answer(begun[-1], pause_seconds=0.001)

    mesh.triton.answer_to = answer_to
    return begun


def ask(mesh: Mesh, what: str) -> socket.socket:
    """A client with little room for what it does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", mesh.http_port))
    body = {**CHAT, "messages": [{"role": "user", "content": what}], "stream": True}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {mesh.member_secret}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def active(mesh: Mesh) -> float:
    for line in mesh.http().get("/metrics").text.splitlines():
        if line.startswith("millrace_generations_active "):
            return float(line.split()[1])
    raise AssertionError("there is no such metric")


def test_others_are_answered_while_some_do_not_read(mesh: Mesh, told: list[Told]) -> None:
    slow = [ask(mesh, "slow") for _ in range(SLOW)]
    wait_until(lambda: len(told) == SLOW, 20, "all have begun")
    client = mesh.openai()
    for _ in range(QUICK):
        answer = client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "quick"
        parts = client.chat.completions.create(**CHAT, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "quick"
    wait_until(lambda: active(mesh) == SLOW, 5, "none of them has had all of its answer")
    for connection in slow:
        connection.close()
    wait_until(lambda: active(mesh) == 0, 20, "what they left is let go")
    wait_until(lambda: mesh.triton.running == 0, 20, "the engine is told")


def test_an_engine_waits_for_a_reader_that_has_it_alone(mesh: Mesh, told: list[Told]) -> None:
    """What is not read is not gathered: gRPC's flow control reaches the engine."""
    client = mesh.openai()

    def stands_still() -> bool:
        before = told[0].said
        for _ in range(10):  # in which it would say a piece a millisecond
            client.chat.completions.create(**CHAT)
        return 0 < before == told[0].said

    with closing(ask(mesh, "slow")):
        wait_until(lambda: len(told) == 1, 20, "it has begun")
        wait_until(stands_still, 60, "the engine waits")
        assert told[0].said < PIECES


def test_who_reads_late_reads_all(mesh: Mesh, told: list[Told]) -> None:
    late = [ask(mesh, "slow") for _ in range(SLOW)]
    wait_until(lambda: len(told) == SLOW, 20, "all have begun")
    assert mesh.openai().chat.completions.create(**CHAT).choices[0].message.content == "quick"
    for connection in late:
        with closing(connection):
            assert read_to_end(connection).count(PIECE.encode()[:1]) >= len(PIECE) * PIECES


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    content = bytearray()
    while b"[DONE]" not in content[-100:]:
        more = connection.recv(1 << 20)
        assert more, "the answer broke off"
        content += more
    return bytes(content)
