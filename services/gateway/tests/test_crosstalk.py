"""Whatever becomes of the others, each client reads its own answer, and nothing else.

Many clients at once ask a real gateway, over real sockets, before a fake Triton whose every piece
of text says whose it is. They stream or not, want several answers, leave midway; their answers
come slowly, fail before the first piece or after the last, or are refused.
"""

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from gateway_fakes import Answer
from gateway_mesh import Mesh
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from millrace_testkit.servers import wait_until

FAILURES = {
    "before": grpc.StatusCode.UNAVAILABLE,
    "after": grpc.StatusCode.INTERNAL,
    "mistake": grpc.StatusCode.INVALID_ARGUMENT,
}
# Across examples: what is left of one must not be taken for another's.
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Visit:
    """One client, and how the engine answers it.

    Attributes:
        pauses: before each piece, in milliseconds.
        failure: "" or a key of ``FAILURES``; "before" and "mistake" give no piece at all.
        left_after: pieces after which a client that streams leaves; None: it stays.
    """

    is_chat: bool
    is_streamed: bool
    answers: int
    pauses: Sequence[int]
    failure: str = ""
    left_after: int | None = None

    def body(self, number: int) -> dict[str, Any]:
        common = {"model": "demo", "n": self.answers, "seed": 0, "stream": self.is_streamed}
        if self.is_chat:
            return {**common, "messages": [{"role": "user", "content": f"#{number}#"}]}
        return {**common, "prompt": f"#{number}#"}

    def answer(self, number: int, index: int) -> Answer:
        pieces = [] if self.failure in ("before", "mistake") else self.pieces(number, index)
        code = FAILURES.get(self.failure)
        return Answer(
            pieces,
            pauses=[pause / 1000 for pause in self.pauses],
            failure=None if code is None else (code, f"as #{number}# has it"),
        )

    def pieces(self, number: int, index: int) -> list[str]:
        return [f"<{number}.{index}.{place}>" for place in range(len(self.pauses))]


@dataclass
class Read:
    """What a client has read: texts by choice, and the error that ended them."""

    texts: dict[int, str]
    error: str = ""
    is_whole: bool = False
    completion_tokens: int = 0


visits = st.builds(
    Visit,
    is_chat=st.booleans(),
    is_streamed=st.booleans(),
    answers=st.integers(1, 3),
    pauses=st.lists(st.sampled_from([0, 0, 1, 5]), min_size=1, max_size=6),
    failure=st.sampled_from(["", "", "", *FAILURES]),
    left_after=st.sampled_from([None, None, 1, 2, 4]),
)
STAYS = Visit(True, True, 1, [5] * 6)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(visits, min_size=1, max_size=12))
@example([STAYS] * 12)
@example([Visit(True, True, 1, [5] * 6, left_after=1), STAYS] * 6)
@example([Visit(False, False, 3, [1] * 6, "after"), Visit(True, True, 2, [5] * 6)] * 4)
def test_nobody_reads_anothers_answer(mesh: Mesh, drawn: list[Visit]) -> None:
    numbered = {next(NUMBERS): visit for visit in drawn}

    def answer_to(request: dict[str, Any]) -> Answer:
        number = int(request["prompt"].split("#")[1])
        return numbered[number].answer(number, request["sampling"]["seed"])

    mesh.triton.answer_to = answer_to
    read = asyncio.run(all_read(mesh, numbered))
    for (number, visit), found in zip(numbered.items(), read, strict=True):
        check(number, visit, found)
    wait_until(lambda: mesh.triton.running == 0, 10, "the engine is told of those who left")
    metrics = mesh.http().get("/metrics").text
    assert "millrace_generations_active 0.0" in metrics


def check(number: int, visit: Visit, found: Read) -> None:
    whole = {index: "".join(visit.pieces(number, index)) for index in range(visit.answers)}
    for index, text in found.texts.items():
        assert whole[index].startswith(text), f"#{number}# read {text!r}"
    if visit.failure:
        if not has_left(visit):
            assert f"#{number}#" in found.error, "it reads of its own failure"
        assert not found.is_whole
    elif not has_left(visit):
        assert found.texts == whole
        assert found.is_whole
        if not visit.is_streamed:
            assert found.completion_tokens == visit.answers * len(visit.pauses)


def has_left(visit: Visit) -> bool:
    return visit.is_streamed and visit.left_after is not None


async def all_read(mesh: Mesh, numbered: dict[int, Visit]) -> list[Read]:
    headers = {"authorization": f"Bearer {mesh.member_secret}"}
    limits = httpx.Limits(max_connections=len(numbered))
    async with httpx.AsyncClient(
        base_url=mesh.url, headers=headers, timeout=60, limits=limits
    ) as client:
        asked = [read_one(client, number, visit) for number, visit in numbered.items()]
        return await asyncio.gather(*asked)


async def read_one(client: httpx.AsyncClient, number: int, visit: Visit) -> Read:
    path = "/v1/chat/completions" if visit.is_chat else "/v1/completions"
    async with client.stream("POST", path, json=visit.body(number)) as response:
        if visit.is_streamed and response.status_code == httpx.codes.OK:
            return await read_stream(response, visit)
        document = json.loads(await response.aread())
    if "error" in document:
        return Read({}, document["error"]["message"])
    texts = {choice["index"]: text_of(choice) for choice in document["choices"]}
    return Read(texts, "", True, document["usage"]["completion_tokens"])


async def read_stream(response: httpx.Response, visit: Visit) -> Read:
    found, pieces = Read({}), 0
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            found.is_whole = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            found.error = event.get("error", {}).get("message", "")
            for choice in event.get("choices", ()):
                text = text_of(choice)
                found.texts[choice["index"]] = found.texts.get(choice["index"], "") + text
                pieces += bool(text)
            if pieces == visit.left_after:
                break
    return found


def text_of(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return (choice.get("message") or choice["delta"]).get("content") or ""
