"""``/v1/embeddings`` through the ``openai`` package, before a fake engine."""

import base64
import json
import socket
from typing import Any

import grpc
import numpy as np
import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import OPERATOR, Mesh

from millrace_gateway.domain import KeyLimits, Role
from millrace_testkit.servers import wait_until


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    return mesh.openai()


@pytest.mark.parametrize(
    ("given", "asked", "sizes"),
    [
        ("a🙂b", {"prompt": "a🙂b"}, [3]),
        (["a🙂b", "cd"], {"prompt": "a🙂bcd"}, [3, 2]),
        ([7, 8], {"input_ids": [7, 8]}, [2]),
        ([[7, 8], [9]], {"input_ids": [7, 8, 9]}, [2, 1]),
    ],
)
def test_all_inputs_are_asked_for_at_once(
    mesh: Mesh, client: openai.OpenAI, given: Any, asked: dict[str, Any], sizes: list[int]
) -> None:
    answer = client.embeddings.create(model="demo", input=given)
    [request] = mesh.triton.requests
    assert {key: request[key] for key in asked} == asked
    assert request["sampling"]["embed"] == {"sizes": sizes, "dimensions": None}
    assert (answer.object, answer.model) == ("list", "demo")
    assert answer.usage.to_dict() == {"prompt_tokens": 7, "total_tokens": 7}
    assert [one.index for one in answer.data] == list(range(len(sizes)))
    # What the fake engine says of each, in the reverse order.
    assert [one.embedding for one in answer.data] == [[n, size] for n, size in enumerate(sizes)]


def test_as_numbers_or_as_bytes(mesh: Mesh) -> None:
    client = mesh.http()
    body = {"model": "demo", "input": ["abc", "d"], "user": "someone"}
    plain = client.post("/v1/embeddings", json=body)
    assert plain.json()["data"][1] == {"object": "embedding", "index": 1, "embedding": [1, 1]}
    assert plain.headers["x-millrace-version"] == "demo@1"
    assert plain.headers["x-request-id"]
    coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(coded["data"][1]["embedding"]), "<f4")
    assert vector.tolist() == [1, 1]


def test_fewer_dimensions(mesh: Mesh, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="demo", input="abc", dimensions=1)
    assert answer.data[0].embedding == [0]
    assert mesh.triton.requests[0]["sampling"]["embed"]["dimensions"] == 1


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ["a", ""]}, "input[1]", "at least 1 character"),
        ({"input": [[1], []]}, "input[1]", "at least 1 item"),
        ({"input": ["a", 3]}, "input[1]", "expected a string"),
        ({"input": [3, "a"]}, "input[1]", "expected an integer"),
        ({"input": [3, -1]}, "input[1]", "greater than or equal to 0"),
        ({"input": [[3, True]]}, "input[0][1]", "expected an integer"),
        ({"input": 3}, "input", "expected a string"),
        ({"input": None}, "input", "expected a string"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 items"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"instruction": "x"}, "instruction", "Unrecognized request argument"),
    ],
)
def test_a_mistake_is_named(mesh: Mesh, change: dict[str, Any], param: str, said: str) -> None:
    response = mesh.http().post("/v1/embeddings", json={"model": "demo", "input": "x", **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert not mesh.triton.requests


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ("input 1 has 9 tokens, but the context is 8", "input", "context_length_exceeded"),
        ("a token id is outside the vocabulary of 5", "input", "invalid_argument"),
        ("dimensions must be 1 to 64, not 65", "dimensions", "invalid_argument"),
        ("unknown sampling parameters: embed", "model", "unsupported_model"),
    ],
)
def test_the_engine_refuses_in_this_apis_words(
    mesh: Mesh, client: openai.OpenAI, message: str, param: str, code: str
) -> None:
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, message))
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.embeddings.create(model="demo", input=["x", "y"])
    assert (caught.value.param, caught.value.code) == (param, code)


def test_there_is_no_such_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nope", input=["x", "y"])


def test_a_keys_limits_hold(mesh: Mesh) -> None:
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=1000)
    client = mesh.openai(mesh.keys.create(OPERATOR, "default", "", Role.MEMBER, limits)[1])
    with pytest.raises(openai.RateLimitError):
        client.embeddings.create(model="demo", input=["word " * 1000] * 4)
    answer = client.embeddings.with_raw_response.create(model="demo", input=["x"] * 100)
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    client.embeddings.create(model="demo", input="x")
    with pytest.raises(openai.RateLimitError):
        client.embeddings.create(model="demo", input="x")


def test_a_client_that_leaves_stops_the_engine(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["x"], pause_seconds=0.02)
    content = json.dumps({"model": "demo", "input": ["x"] * 1000}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {mesh.member_secret}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", mesh.http_port)) as connection:
        connection.sendall(head.encode() + content)
        wait_until(lambda: mesh.triton.running == 1, 10, "the engine runs")
    wait_until(lambda: mesh.triton.cancelled == 1, 10, "the engine is told")
