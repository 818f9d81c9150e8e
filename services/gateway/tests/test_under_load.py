"""Limits, priorities and several endpoints, as the ``openai`` package and its users see them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from gateway_fakes import Answer, FakeTriton, start_triton
from gateway_mesh import OPERATOR, Mesh

from millrace_gateway.domain import KeyLimits, Priority, Role
from millrace_testkit.servers import wait_until

MESSAGES: Any = [{"role": "user", "content": "x"}]
# The first piece comes at once, and the second when the test is long over.
HELD = Answer(["a", "b"], pauses=[0, 60])


def secret_of(mesh: Mesh, **limits: Any) -> str:
    """A new key of the default tenant."""
    return mesh.keys.create(OPERATOR, "default", "", Role.MEMBER, KeyLimits(**limits))[1]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="demo", messages=MESSAGES, **options)


def refused(action: Callable[[], object]) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as caught:
        action()
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value


def metric(mesh: Mesh, line: str) -> float:
    for found in mesh.http().get("/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.rpartition(" ")[2])
    return 0.0


def test_requests_per_minute(mesh: Mesh) -> None:
    client = mesh.openai(secret_of(mesh, requests_per_minute=2))
    first = client.chat.completions.with_raw_response.create(model="demo", messages=MESSAGES)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in first.headers
    with client.chat.completions.with_streaming_response.create(
        model="demo", messages=MESSAGES, stream=True
    ) as second:
        assert second.headers["x-ratelimit-remaining-requests"] == "0"
    error = refused(lambda: ask(client))
    assert error.type == "requests"
    assert "Limit 2" in error.message and "Please try again in" in error.message
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(error.response.headers["retry-after"]) <= 30
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 30_000
    assert len(mesh.triton.requests) == 2, "the engine hears nothing of what is refused"
    ask(mesh.openai())  # another key's


def test_text_completions_count_too_and_so_do_mistakes_of_the_engine(mesh: Mesh) -> None:
    client = mesh.openai(secret_of(mesh, requests_per_minute=2))
    client.completions.create(model="demo", prompt="x")
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, "too long"))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client)
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    refused(lambda: ask(client))


def test_several_answers_are_one_request(mesh: Mesh) -> None:
    client = mesh.openai(secret_of(mesh, requests_per_minute=1))
    assert len(ask(client, n=3).choices) == 3
    refused(lambda: ask(client))


def test_tokens_are_reserved_and_settled(mesh: Mesh) -> None:
    client = mesh.openai(secret_of(mesh, tokens_per_minute=60))
    create = client.completions.with_raw_response.create
    # 40 characters are estimated at 10 tokens; with 30 for the answer, 20 of 60 remain.
    answer = client.completions.with_streaming_response.create(
        model="demo", prompt="x" * 40, max_tokens=30, stream=True
    )
    with answer as stream:
        assert 20 <= int(stream.headers["x-ratelimit-remaining-tokens"]) < 50
        list(stream.iter_lines())
    # The engine counted 7 + 3: 50 remain, of which 5 are reserved and 10 used in the end.
    settled = create(model="demo", prompt="x", max_tokens=4)
    assert 40 <= int(settled.headers["x-ratelimit-remaining-tokens"]) <= 60
    error = refused(lambda: create(model="demo", prompt="x" * 100, max_tokens=35))
    assert error.type == "tokens"
    assert "x-ratelimit-limit-requests" not in error.response.headers


def test_an_answer_of_open_length_fits_every_limit(mesh: Mesh) -> None:
    ask(mesh.openai(secret_of(mesh, tokens_per_minute=40)))


def recording(mesh: Mesh, secret: str, retries: int) -> tuple[openai.OpenAI, list[int]]:
    """A client that retries, and the status of each response that it had."""
    statuses: list[int] = []
    hooks = {"response": [lambda response: statuses.append(response.status_code)]}
    http = httpx.Client(event_hooks=hooks)
    client = openai.OpenAI(
        base_url=f"{mesh.url}/v1", api_key=secret, max_retries=retries, http_client=http
    )
    mesh._clients.append(client)
    return client, statuses


def test_what_can_never_fit_is_not_tried_again(mesh: Mesh) -> None:
    client, statuses = recording(mesh, secret_of(mesh, tokens_per_minute=100), retries=3)
    error = refused(lambda: ask(client, max_tokens=101))
    assert "too large" in error.message
    assert "retry-after" not in error.response.headers
    assert statuses == [429]


def test_the_client_tries_again_when_it_is_told_to(mesh: Mesh) -> None:
    secret = secret_of(mesh, concurrent_generations=1)
    mesh.triton.answer = HELD
    held = ask(mesh.openai(secret), stream=True)
    next(iter(held))
    client, statuses = recording(mesh, secret, retries=2)
    mesh.triton.answer = Answer(["ok"])
    timer = threading.Timer(0.3, held.close)
    timer.start()
    assert ask(client).choices[0].message.content == "ok"
    timer.join()
    assert statuses == [429, 200]


def test_a_client_that_leaves_gives_its_place_back(mesh: Mesh) -> None:
    client = mesh.openai(secret_of(mesh, concurrent_generations=2))
    mesh.triton.answer = HELD
    streams = [ask(client, stream=True) for _ in range(2)]
    error = refused(lambda: ask(client))
    assert error.type == "requests"
    assert error.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    wait_until(lambda: mesh.triton.running == 0, 5, "the engine is told")
    mesh.triton.answer = Answer(["ok"])
    assert ask(client).choices[0].message.content == "ok"


def test_limits_are_set_and_changed_by_operators(mesh: Mesh) -> None:
    operator = mesh.http(mesh.operator_secret)
    body = {"requests_per_minute": 1, "concurrent_generations": 5, "priority": "low"}
    made = operator.post("/v1/keys", json=body).json()
    assert {name: made[name] for name in body} == body
    assert made["tokens_per_minute"] is None
    client = mesh.openai(made["secret"])
    ask(client)
    refused(lambda: ask(client))
    path = f"/v1/keys/{made['id']}"
    changed = operator.patch(path, json={"requests_per_minute": None, "priority": "high"}).json()
    assert (changed["requests_per_minute"], changed["priority"]) == (None, "high")
    assert changed["concurrent_generations"] == 5

    def is_free() -> bool:
        return mesh.http(made["secret"]).get("/v1/models").status_code == 200 and (
            "x-ratelimit-limit-requests"
            not in client.chat.completions.with_raw_response.create(
                model="demo", messages=MESSAGES
            ).headers
        )

    def answers() -> bool:
        try:
            return is_free()
        except openai.RateLimitError:
            return False

    wait_until(answers, 5, "the new limits hold")
    for wrong in ({}, {"requests_per_minute": 0}, {"priority": "urgent"}, {"role": "member"}):
        assert operator.patch(path, json=wrong).status_code == 400, wrong
    assert mesh.http().patch(path, json={"priority": "high"}).status_code == 403
    assert operator.patch("/v1/keys/key-none", json=body).status_code == 404
    operator.delete(path)
    assert operator.patch(path, json=body).json()["error"]["code"] == "key_revoked"


@pytest.fixture(scope="module")
def shared_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(
        tmp_path_factory.mktemp("small"),
        endpoint_generations=2,
        default_priority_queue=1,
        high_priority_queue=1,
        low_priority_queue=0,
        queue_seconds=20.0,
    )
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def small(shared_small: Mesh) -> Iterator[Mesh]:
    """A gateway with two places at its engine, of which low priority may have one."""
    shared_small.reset()
    yield shared_small
    wait_until(lambda: shared_small.triton.running == 0, 5, "all places are free")


def hold(mesh: Mesh, **options: Any) -> Any:
    """A stream that has begun, and goes on until it is closed."""
    mesh.triton.answer = HELD
    stream = ask(mesh.openai(), stream=True, **options)
    next(iter(stream))
    return stream


def is_waiting(mesh: Mesh, priority: Priority) -> Callable[[], bool]:
    line = f'millrace_admission_waiting{{priority="{priority.value}"}}'
    return lambda: metric(mesh, line) == 1


def test_high_goes_first_and_low_is_refused_at_once(small: Mesh) -> None:
    streams = [hold(small, service_tier="flex")]
    low = refused(lambda: ask(small.openai(), service_tier="flex"))
    assert low.response.headers["retry-after"] == "1"
    by_key = small.openai(secret_of(small, priority=Priority.LOW))
    refused(lambda: ask(by_key))
    streams.append(hold(small))
    small.triton.answer = Answer(["ok"])
    client = small.openai()
    with ThreadPoolExecutor(2) as pool:
        default = pool.submit(ask, client, seed=1)
        wait_until(is_waiting(small, Priority.DEFAULT), 5, "the default one waits")
        refused(lambda: ask(small.openai()))
        high = pool.submit(ask, client, seed=2, service_tier="priority")
        wait_until(is_waiting(small, Priority.HIGH), 5, "the high one waits")
        streams.pop().close()
        for waiting in (high, default):
            assert waiting.result(10).choices[0].message.content == "ok"
    streams.pop().close()
    assert [request["sampling"].get("seed") for request in small.triton.requests[2:]] == [2, 1]
    # Prometheus's registry is the process's: others may have counted, too.
    counted = 'millrace_admission_refused_total{priority="low",reason="queue_full"}'
    assert metric(small, counted) >= 2


def test_who_leaves_the_queue_leaves_nothing_behind(small: Mesh) -> None:
    streams = [hold(small), hold(small)]
    body = {"model": "demo", "messages": MESSAGES}
    with pytest.raises(httpx.ReadTimeout):  # of which the gateway knows nothing before
        small.http().post("/v1/chat/completions", json=body, timeout=0.5)
    wait_until(lambda: not is_waiting(small, Priority.DEFAULT)(), 5, "the queue is empty")
    assert len(small.triton.requests) == 2
    for stream in streams:
        stream.close()
    for _ in range(2):
        streams.append(hold(small))
    small.triton.answer = Answer(["ok"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, small.openai())
        wait_until(is_waiting(small, Priority.DEFAULT), 5, "there are two places, as before")
        streams.pop().close()
        assert waiting.result(10).choices[0].message.content == "ok"
    streams.pop().close()


def test_the_operators_settings(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, endpoint_generations=1, queue_seconds=0.2, requests_per_minute=2)
    mesh.start()
    try:
        held = hold(mesh)
        assert "busy" in refused(lambda: ask(mesh.openai())).message, "nobody waits for ever"
        assert not is_waiting(mesh, Priority.DEFAULT)()
        assert "Limit 2" in refused(lambda: ask(mesh.openai())).message
        held.close()
        mesh.triton.answer = Answer(["ok"])
        generous = mesh.openai(secret_of(mesh, requests_per_minute=9))
        for _ in range(3):
            ask(generous)
    finally:
        mesh.stop()


@dataclass
class Endpoints:
    """Two fake Tritons behind one version."""

    first: FakeTriton
    second: FakeTriton


@pytest.fixture
def endpoints(mesh: Mesh) -> Iterator[Endpoints]:
    second = FakeTriton()
    server, address = mesh.in_loop(lambda: start_triton(second))
    # A version of its own: nothing is known of it from other tests.
    mesh.serve_routes([mesh.route(version=77, endpoints=[mesh.triton_address, address])])
    yield Endpoints(mesh.triton, second)
    mesh.in_loop(lambda: server.stop(None))


def test_the_endpoint_with_the_least_to_do_is_asked(mesh: Mesh, endpoints: Endpoints) -> None:
    endpoints.first.answer = endpoints.second.answer = HELD
    streams = [ask(mesh.openai(), stream=True) for _ in range(6)]
    assert (endpoints.first.running, endpoints.second.running) == (3, 3)
    for stream in streams:
        stream.close()


def test_an_endpoint_that_fails_is_left_alone_and_taken_back(
    mesh: Mesh, endpoints: Endpoints
) -> None:
    broken, good = endpoints.first, endpoints.second
    broken.answer = Answer([], failure=(grpc.StatusCode.UNAVAILABLE, "gone"))
    client = mesh.openai()

    def served_by(triton: FakeTriton) -> bool:
        before = len(triton.requests)
        ask(client)
        return len(triton.requests) > before

    wait_until(lambda: served_by(broken), 5, "the broken one is found out")
    assert good.requests, "and nobody noticed"
    # Within its second at most one more request tries it, on however slow a machine.
    tries = sum(served_by(broken) for _ in range(10))
    assert tries <= 2, "it is left alone"
    broken.answer = Answer(["ok"])
    wait_until(lambda: served_by(broken), 10, "it is tried again, and works")
    broken.answer = good.answer = HELD
    streams = [ask(client, stream=True) for _ in range(2)]
    wait_until(lambda: good.running == broken.running == 1, 5, "both are used again")
    for stream in streams:
        stream.close()


def test_the_last_endpoint_is_asked_however_often_it_fails(mesh: Mesh) -> None:
    mesh.serve_routes([mesh.route(version=78)])
    mesh.triton.answer = Answer(["a"], failure=None)
    ask(mesh.openai())
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.UNAVAILABLE, "gone"))
    with pytest.raises(openai.InternalServerError):
        ask(mesh.openai())
    mesh.triton.answer = Answer(["back"])
    assert ask(mesh.openai()).choices[0].message.content == "back"


def test_an_answer_says_in_which_class_it_was_served(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["ok"])
    client = mesh.openai()
    for asked, served in (("priority", "priority"), ("flex", "flex"), ("auto", "default")):
        assert ask(client, service_tier=asked).service_tier == served
    by_key = mesh.openai(secret_of(mesh, priority=Priority.LOW))
    chunks = list(ask(by_key, stream=True))
    assert {chunk.service_tier for chunk in chunks} == {"flex"}
    response = client.responses.create(model="demo", input="x", service_tier="priority")
    assert response.service_tier == "priority"
