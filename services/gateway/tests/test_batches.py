"""Batches, by the unmodified ``openai`` package: from the uploaded file to the answers."""

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import OPERATOR, Mesh
from openai.types import Batch

from millrace_gateway.domain import KeyLimits, Priority, Role
from millrace_testkit.servers import wait_until

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": "demo", "messages": [{"role": "user", "content": f"q{number}"}], **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


def jsonl(lines: Sequence[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def make(client: openai.OpenAI, lines: Sequence[Any], endpoint: Any = CHAT) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, jsonl(lines)),
        endpoint=endpoint,
        completion_window="24h",
        metadata={"name": "nightly"},
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    def is_over() -> bool:
        return client.batches.retrieve(batch.id).status in ENDED

    wait_until(is_over, 60, "the batch ends")
    return client.batches.retrieve(batch.id)


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered(mesh: Mesh) -> None:
    client = mesh.openai()
    made = make(client, [line(n, max_tokens=3) for n in range(20)])
    assert (made.status, made.object, made.completion_window) == ("validating", "batch", "24h")
    assert made.metadata == {"name": "nightly"}
    assert made.expires_at == made.created_at + 24 * 3600
    batch = ended(client, made)
    assert batch.status == "completed" and batch.model == "demo"
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
    assert batch.failed_at is batch.expired_at is batch.cancelled_at is batch.errors is None
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (20, 20, 0)
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (20 * 7, 20 * 3)
    assert batch.usage.total_tokens == 200
    assert batch.error_file_id is None
    output = read(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(20)]
    assert len({one["id"] for one in output}) == 20
    for one in output:
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"].startswith("req-")
        completion = one["response"]["body"]
        assert completion["choices"][0]["message"]["content"] == "Hello 🙂"
    file = client.files.retrieve(batch.output_file_id or "")
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    asked = sorted(request["prompt"] for request in mesh.triton.requests)
    assert len(asked) == 20 and len(set(asked)) == 20


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "demo", "prompt": "x"}),
        ("/v1/responses", {"model": "demo", "input": "x"}),
    ],
)
def test_the_other_endpoints(mesh: Mesh, endpoint: str, body: dict[str, Any]) -> None:
    client = mesh.openai()
    asked = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    batch = ended(client, make(client, [asked], endpoint))
    (one,) = read(client, batch.output_file_id)
    online = mesh.http().post(endpoint, json=body).json()
    answer = one["response"]["body"]
    assert answer.keys() == online.keys()
    assert answer["usage"] == online["usage"]
    assert batch.usage is not None and batch.usage.total_tokens == 10


def test_what_is_refused_online_is_in_the_error_file(mesh: Mesh) -> None:
    client = mesh.openai()
    lines = [line(1), line(2, temperature=9), line(3, unknown=1), line(4)]
    batch = ended(client, make(client, lines))
    assert batch.status == "completed"
    assert batch.request_counts is not None and batch.request_counts.failed == 2
    assert [one["custom_id"] for one in read(client, batch.output_file_id)] == ["line-1", "line-4"]
    mistakes = read(client, batch.error_file_id)
    for one, wrong in zip(mistakes, ("temperature", "unknown"), strict=True):
        online = mesh.http().post(CHAT, json=lines[1 if wrong == "temperature" else 2]["body"])
        assert one["error"] is None
        assert one["response"]["status_code"] == online.status_code == 400
        assert one["response"]["body"] == online.json()
        assert one["response"]["body"]["error"]["param"] == wrong


@pytest.mark.parametrize(
    ("content", "code", "number", "param"),
    [
        (b"", "empty_file", None, None),
        (b"\n\n", "empty_file", None, None),
        (jsonl([line(1)]) + b"{oops\n", "invalid_json_line", 2, None),
        (jsonl([[1]]), "invalid_json_line", 1, None),
        (jsonl([{**line(1), "custom_id": ""}]), "invalid_value", 1, "custom_id"),
        (jsonl([line(1), line(2), line(1)]), "duplicate_custom_id", 3, "custom_id"),
        (jsonl([line(1, url="/v1/completions")]), "url_mismatch", 1, "url"),
        (jsonl([{**line(1), "method": "GET"}]), "invalid_method", 1, "method"),
        (jsonl([{**line(1), "body": 3}]), "invalid_type", 1, "body"),
        (jsonl([{**line(1), "extra": 3}]), "unknown_parameter", 1, "extra"),
        (jsonl([line(1, model=None)]), "missing_required_parameter", 1, "body.model"),
        (jsonl([line(1), line(2, model="demo@1")]), "model_mismatch", 2, "body.model"),
        (jsonl([line(1, model="nothing")]), "model_not_found", None, "body.model"),
        (jsonl([line(1, stream=True)]), "unsupported_parameter", 1, "body.stream"),
        (
            jsonl([line(1, service_tier="priority")]),
            "unsupported_parameter",
            1,
            "body.service_tier",
        ),
    ],
)
def test_a_wrong_input_fails_the_batch(
    mesh: Mesh, content: bytes, code: str, number: int | None, param: str | None
) -> None:
    client = mesh.openai()
    made = client.batches.create(
        input_file_id=upload(client, content), endpoint=CHAT, completion_window="24h"
    )
    batch = ended(client, made)
    assert batch.status == "failed" and batch.failed_at
    assert batch.output_file_id is batch.error_file_id is None
    assert batch.errors is not None and batch.errors.object == "list"
    (error,) = batch.errors.data or []
    assert (error.code, error.line, error.param) == (code, number, param)
    assert error.message
    assert not mesh.triton.requests


def test_every_wrong_line_is_told(mesh: Mesh) -> None:
    client = mesh.openai()
    lines = [{key: value for key, value in line(n).items() if key != "method"} for n in range(3)]
    batch = ended(client, make(client, [*lines, line(9)]))
    assert batch.errors is not None
    found = [(error.code, error.line, error.param) for error in batch.errors.data or []]
    assert found == [("missing_required_parameter", n, "method") for n in (1, 2, 3)]


def test_what_cannot_be_a_batch_is_refused_at_once(mesh: Mesh) -> None:
    client = mesh.openai()
    batch_file = upload(client, jsonl([line(1)]))
    other = client.files.create(file=b"x", purpose="user_data").id
    good: dict[str, Any] = {
        "input_file_id": batch_file,
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    for field, value in (
        ("input_file_id", "file-none"),
        ("input_file_id", other),
        ("endpoint", "/v1/moderations"),
        ("completion_window", "1h"),
        ("output_expires_after", {"anchor": "created_at", "seconds": 3600}),
        ("metadata", {f"k{n}": "v" for n in range(17)}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**{**good, field: value})
        assert caught.value.param == field, (field, caught.value.body)
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai(mesh.other_secret).batches.create(**good)
    assert caught.value.param == "input_file_id", "another tenant's file"


def test_a_request_sent_twice_makes_one_batch(mesh: Mesh) -> None:
    client = mesh.openai()
    body = {
        "input_file_id": upload(client, jsonl([line(1)])),
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    http = mesh.http(**{"idempotency-key": upload(client, b"x")})
    first, second = (http.post("/v1/batches", json=body) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    other = http.post("/v1/batches", json={**body, "endpoint": "/v1/completions"})
    assert other.status_code == 409
    ended(client, client.batches.retrieve(first.json()["id"]))


def test_batches_are_listed_newest_first(mesh: Mesh) -> None:
    key = mesh.keys.create(OPERATOR, "acme", "lists", Role.MEMBER)[1]
    mesh.serve_routes([mesh.route(), mesh.route(tenant="acme")])
    client = mesh.openai(key)
    made = [make(client, [line(n)]) for n in range(3)]
    for batch in made:
        ended(client, batch)
    ids = [batch.id for batch in reversed(made)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == ids[:2] and page.has_more
    raw = mesh.http(key).get("/v1/batches", params={"limit": 2}).json()
    assert (raw["object"], raw["first_id"], raw["last_id"]) == ("list", ids[0], ids[1])
    rest = client.batches.list(limit=2, after=ids[1])
    assert [batch.id for batch in rest.data] == ids[2:] and not rest.has_more
    assert [batch.id for batch in client.batches.list(limit=1)] == ids, "the SDK turns the pages"


def test_a_batch_is_its_tenants_alone(mesh: Mesh) -> None:
    client, other = mesh.openai(), mesh.openai(mesh.other_secret)
    made = ended(client, make(client, [line(1)]))
    for call in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert made.id not in [batch.id for batch in other.batches.list()]
    for unknown in ("batch-none", "a b", "x" * 90):
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(unknown)


def test_a_batch_can_be_cancelled(mesh: Mesh) -> None:
    def slow(request: dict[str, Any]) -> Answer:
        return Answer(["ok"], pause_seconds=0 if "q0<" in request["prompt"] else 600)

    mesh.triton.answer_to = slow
    client = mesh.openai()
    made = make(client, [line(n) for n in range(12)])

    def has_begun() -> bool:
        counts = client.batches.retrieve(made.id).request_counts
        return counts is not None and counts.completed == 1 and mesh.triton.running > 0

    wait_until(has_begun, 30, "the first line is answered")
    cancelled = client.batches.cancel(made.id)
    assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at
    batch = ended(client, made)
    assert batch.status == "cancelled" and batch.cancelled_at
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.total) == (1, 12)
    assert [one["custom_id"] for one in read(client, batch.output_file_id)] == ["line-0"]
    rest = read(client, batch.error_file_id)
    assert [one["custom_id"] for one in rest] == [f"line-{n}" for n in range(1, 12)]
    assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
    assert {one["response"] for one in rest} == {None}
    wait_until(lambda: mesh.triton.running == 0, 30, "the engine is let go")
    assert client.batches.cancel(made.id).status == "cancelled", "twice is as once"


def test_what_has_ended_cannot_be_cancelled(mesh: Mesh) -> None:
    client = mesh.openai()
    batch = ended(client, make(client, [line(1)]))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batch.id)


def test_a_revoked_key_answers_no_more_lines(mesh: Mesh) -> None:
    key, secret = mesh.keys.create(OPERATOR, "default", "short-lived", Role.MEMBER)
    mesh.triton.answer_to = lambda request: Answer(["ok"], pause_seconds=0.3)
    client = mesh.openai(secret)
    made = make(client, [line(n) for n in range(40)])
    wait_until(lambda: mesh.triton.running > 0, 30, "the batch has begun")
    mesh.keys.revoke(OPERATOR, "default", key.id)
    member = mesh.openai()
    batch = ended(member, made)
    assert batch.status == "completed"
    refused = read(member, batch.error_file_id)
    assert batch.request_counts is not None and batch.request_counts.failed == len(refused) > 0
    assert {one["response"]["status_code"] for one in refused} == {401}
    codes = {one["response"]["body"]["error"]["code"] for one in refused}
    assert codes == {"invalid_api_key"}


def test_a_limited_key_is_waited_for(mesh: Mesh) -> None:
    limits = KeyLimits(concurrent_generations=1, priority=Priority.HIGH)
    secret = mesh.keys.create(OPERATOR, "default", "narrow", Role.MEMBER, limits)[1]
    client = mesh.openai(secret)
    batch = ended(client, make(client, [line(n) for n in range(3)]))
    assert batch.request_counts is not None and batch.request_counts.completed == 3


def test_a_request_that_can_never_fit_is_not_tried_again(mesh: Mesh) -> None:
    limits = KeyLimits(tokens_per_minute=20)
    secret = mesh.keys.create(OPERATOR, "default", "small", Role.MEMBER, limits)[1]
    client = mesh.openai(secret)
    batch = ended(client, make(client, [line(1, max_tokens=500)]))
    (refused,) = read(client, batch.error_file_id)
    assert refused["response"]["status_code"] == 429


def test_nobody_can_say_who_they_are_from_outside(mesh: Mesh) -> None:
    """What the batch worker puts into the scope cannot come in by a request."""
    http = mesh.http("sk-mr-" + "x" * 43, principal="operator", state="principal")
    answer = http.post(f"{CHAT}?principal=operator", json=line(1)["body"])
    assert answer.status_code == 401


def test_metrics(mesh: Mesh) -> None:
    client = mesh.openai()
    ended(client, make(client, [line(1)]))
    text = mesh.http().get("/metrics").text
    assert 'millrace_batches{status="completed"}' in text
    assert 'millrace_batch_lines_total{outcome="completed"}' in text
