"""What becomes of an inference request when engines fail, clients leave, and limits are reached."""

import asyncio
import json
import queue
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from gateway_fakes import Answer
from gateway_mesh import OPERATOR, Mesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from millrace_gateway.admission import Capacity
from millrace_gateway.answers import AnswerCounts
from millrace_gateway.deadline import DeadlineExceeded
from millrace_gateway.domain import KeyLimits, Principal, Priority, Role
from millrace_gateway.entrance import Entrance
from millrace_gateway.health import Health
from millrace_gateway.inference import Asked, Inference, reference
from millrace_gateway.inference_engine import Terms, TritonInference
from millrace_gateway.limits import Limiter
from millrace_gateway.placement import Place, Placement
from millrace_gateway.route import Choice, Route, RouteTable, Target
from millrace_gateway.triton import EngineFailed
from millrace_runtime.errors import (
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from millrace_testkit.servers import free_port

MEMBER = Principal("default", "key-1", Role.MEMBER)
PROMPT = ("prompt", "Hi"), ("sampling", "{}")


@dataclass(frozen=True)
class Script:
    """How the engine answers once: so many responses, each with a token, and then this."""

    responses: int
    failure: type[Exception] | None = None
    # The client goes away after so many responses.
    left_after: int | None = None


class ScriptedEngine:
    """Plays scripts in their order."""

    def __init__(self, scripts: list[Script]) -> None:
        self._scripts = iter(scripts)
        self.asked: list[Place] = []
        self.terms: list[Terms] = []
        self.closed = 0

    async def answer(self, place: Place, request: Any, terms: Terms) -> AsyncGenerator[Any, None]:
        self.asked.append(place)
        self.terms.append(terms)
        script = next(self._scripts)
        try:
            for _ in range(script.responses):
                response = service_pb2.ModelInferResponse(model_name=place.route.model)
                response.outputs.add(name="token_count", datatype="INT32", shape=[1])
                response.raw_output_contents.append((1).to_bytes(4, "little"))
                await asyncio.sleep(0)
                yield response
            if script.failure is not None:
                raise script.failure("as the script has it")
        finally:
            self.closed += 1

    async def metadata(self, place: Place) -> Any:
        raise EngineFailed("the script says nothing")

    config = statistics = metadata


class Bench:
    """An ``Inference`` on a scripted engine, with all it leaves marks in."""

    def __init__(self, scripts: list[Script], places: int = 8, queue_seconds: float = 5) -> None:
        self.engine = ScriptedEngine(scripts)
        self.counts = AnswerCounts()
        shares = dict.fromkeys(Priority, 1.0)
        capacity = Capacity(places, shares, dict.fromkeys(Priority, 8))
        self.entrance = Entrance(64, capacity, queue_seconds)
        self.limiter = Limiter(KeyLimits(tokens_per_minute=10_000), lambda: 0.0)
        self.routes = RouteTable()
        targets = (
            Target(version=1, share=0.5, endpoints=("a:1", "b:1")),
            Target(version=2, share=0.5, endpoints=("a:1",)),
        )
        self.routes.replace(1, [Route("default", "demo", "default.demo", targets)])
        placement = Placement(self.routes, self.entrance, Health(), lambda: 0)
        self.inference = Inference(placement, self.engine, self.counts, self.limiter)

    def asked(self, model: str = "demo") -> Asked:
        async def question(_place: Place) -> Any:
            return service_pb2.ModelInferRequest()

        return Asked(MEMBER, model, question, is_stream=True)

    async def play(self, left_after: int | None) -> str:
        """One request to its end: how it ended."""
        try:
            async with aclosing(self.inference.answers(self.asked())) as responses:
                read = 0
                while read != left_after:
                    if await anext(responses, None) is None:
                        return "ok"
                    read += 1
        except MillraceError as error:
            return type(error).__name__
        return "left"


scripts = st.builds(
    Script,
    responses=st.integers(0, 3),
    failure=st.sampled_from([None, EngineFailed, InvalidArgument]),
    left_after=st.none() | st.integers(0, 3),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(scripts, max_size=8))
def test_whatever_happens_nothing_is_held(drawn: list[Script]) -> None:
    """Places, reservations and counts are as the ends of the requests say."""
    bench = Bench([script for script in drawn for _ in range(2)])

    async def all_of_them() -> list[str]:
        return [await bench.play(script.left_after) for script in drawn]

    ends = asyncio.run(all_of_them())
    assert bench.entrance.in_progress == {}
    allowance = bench.limiter.of(MEMBER)
    assert allowance is not None
    assert allowance.running == 0
    assert bench.engine.closed == len(bench.engine.asked)
    counts = bench.counts.all()
    answered = sum(count.requests - count.failures for count in counts)
    assert answered == ends.count("ok")
    failures = sum(count.failures for count in counts)
    assert ends.count("Unavailable") <= failures <= len(bench.engine.asked) - answered


def test_a_failure_before_the_first_response_is_asked_elsewhere() -> None:
    bench = Bench([Script(0, EngineFailed), Script(2)])
    assert asyncio.run(bench.play(None)) == "ok"
    first, second = bench.engine.asked
    assert first.choice != second.choice
    counts = {count.version: (count.requests, count.failures) for count in bench.counts.all()}
    assert sum(failures for _, failures in counts.values()) == 1


def test_a_failure_after_it_is_told() -> None:
    bench = Bench([Script(1, EngineFailed)])
    assert asyncio.run(bench.play(None)) == Unavailable.__name__
    assert len(bench.engine.asked) == 1


def test_a_clients_mistake_is_no_failure() -> None:
    bench = Bench([Script(0, InvalidArgument)])
    assert asyncio.run(bench.play(None)) == InvalidArgument.__name__
    assert bench.counts.all() == []


def test_who_finds_no_place_is_refused() -> None:
    bench = Bench([Script(1), Script(1)], places=1, queue_seconds=0.05)

    async def second_while_first() -> None:
        holders = [bench.inference.answers(bench.asked("demo@2"))]
        await anext(holders[0])
        with pytest.raises(ResourceExhausted):
            await anext(bench.inference.answers(bench.asked("demo@2")))
        await holders[0].aclose()

    asyncio.run(second_while_first())
    assert bench.entrance.in_progress == {}


def test_who_waits_for_a_place_longer_than_the_client_does_is_not_asked() -> None:
    bench = Bench([Script(1)], places=1, queue_seconds=60)

    async def second_while_first() -> None:
        holder = bench.inference.answers(bench.asked("demo@2"))
        await anext(holder)
        late = replace(bench.asked("demo@2"), ends_by=asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(DeadlineExceeded):
            await anext(bench.inference.answers(late))
        assert len(bench.engine.asked) == 1
        await holder.aclose()

    asyncio.run(second_while_first())
    assert bench.entrance.in_progress == {}


def test_what_is_left_of_a_deadline_goes_to_the_engine() -> None:
    bench = Bench([Script(1)])

    async def ask_it() -> None:
        loop = asyncio.get_running_loop()
        async with aclosing(
            bench.inference.answers(replace(bench.asked(), ends_by=loop.time() + 60))
        ) as responses:
            await anext(responses)
        [terms] = bench.engine.terms
        assert terms.timeout_seconds is not None and 0 < terms.timeout_seconds <= 60
        with pytest.raises(DeadlineExceeded):
            await anext(bench.inference.answers(replace(bench.asked(), ends_by=loop.time())))
        assert len(bench.engine.asked) == 1, "there is no time left to ask it"

    asyncio.run(ask_it())
    assert bench.entrance.in_progress == {}


def test_tokens_are_paid_for_when_they_are_known() -> None:
    bench = Bench([Script(3)])
    asyncio.run(bench.play(None))
    allowance = bench.limiter.of(MEMBER)
    assert allowance is not None
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "9997"


@given(st.text(max_size=400), st.text(max_size=400))
def test_references(model: str, version: str) -> None:
    try:
        found = reference(model, version)
    except (NotFound, InvalidArgument):
        return
    name, _, pinned = found.partition("@")
    assert name == model.partition("@")[0]
    assert pinned in (version, model.partition("@")[2])
    assert len(found) <= 300


class Refusing(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A Triton that ends every call with one status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._status = code, details

    async def ModelInfer(self, request: Any, context: Any) -> None:
        await context.abort(*self._status)

    ModelConfig = ModelInfer


@pytest.mark.parametrize(
    ("code", "details", "timeout_seconds", "meaning", "message"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", None, InvalidArgument, "bad"),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "input for model 'default.demo'",
            None,
            InvalidArgument,
            "input for model 'demo'",
        ),
        (grpc.StatusCode.UNIMPLEMENTED, "", None, FailedPrecondition, "answers in parts"),
        (grpc.StatusCode.UNAVAILABLE, "gone", None, EngineFailed, "UNAVAILABLE: gone"),
        (grpc.StatusCode.INTERNAL, "oh", None, EngineFailed, "INTERNAL: oh"),
        (grpc.StatusCode.NOT_FOUND, "no model", None, EngineFailed, "no model"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", None, EngineFailed, "late"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", 5, DeadlineExceeded, "deadline of the request"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "This protocol is restricted, expecting header 'x'",
            None,
            FailedPrecondition,
            "not open to clients",
        ),
    ],
)
def test_what_tritons_status_means(
    code: grpc.StatusCode,
    details: str,
    timeout_seconds: float | None,
    meaning: type[Exception],
    message: str,
) -> None:
    async def ask_it() -> None:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Refusing(code, details), server)
        endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        engine = TritonInference(600, 30)
        target = Target(version=1, share=1.0, endpoints=(endpoint,))
        place = Place(Route("default", "demo", "default.demo", (target,)), Choice(target, endpoint))
        terms = Terms(is_stream=False, timeout_seconds=timeout_seconds)
        with pytest.raises(meaning, match=message):
            await anext(engine.answer(place, service_pb2.ModelInferRequest(), terms))
        if timeout_seconds is None:
            with pytest.raises(meaning, match=message):
                await engine.config(place)
        await engine.close()
        await server.stop(None)

    asyncio.run(ask_it())


# Through the whole gateway, to a fake Triton


@pytest.fixture
def client(mesh: Mesh) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(mesh.grpc_address) as opened:
        yield opened


def ask(client: triton.InferenceServerClient, request_id: str = "") -> None:
    inputs = []
    for name, text in PROMPT:
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
        inputs.append(tensor)
    client.async_stream_infer("demo", inputs, request_id=request_id)


class Heard:
    """What a stream's callback was told."""

    def __init__(self) -> None:
        self._told: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._told.put((result, error))

    def next(self) -> tuple[Any, Any]:
        return self._told.get(timeout=10)

    def texts(self, count: int) -> list[str]:
        told = [self.next() for _ in range(count)]
        assert [error for _, error in told if error is not None] == []
        return [result.as_numpy("text")[0].decode() for result, _ in told]


def key_of(mesh: Mesh) -> dict[str, str]:
    return {"authorization": f"Bearer {mesh.member_secret}"}


def test_a_dead_endpoint_is_passed_over(mesh: Mesh, client: triton.InferenceServerClient) -> None:
    dead = f"127.0.0.1:{free_port()}"
    mesh.serve_routes([mesh.route(endpoints=[dead, mesh.triton_address])])
    heard = Heard()
    client.start_stream(heard, headers=key_of(mesh))
    for _ in range(4):
        ask(client)
        assert heard.texts(3) == ["Hel", "lo", " 🙂"]
    client.stop_stream()
    assert {request["model"] for request in mesh.triton.requests} == {"default.demo"}


def test_the_trace_goes_along(mesh: Mesh, client: triton.InferenceServerClient) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319d"
    heard = Heard()
    traceparent = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    client.start_stream(heard, headers={**key_of(mesh), **traceparent})
    ask(client)
    heard.texts(3)
    client.stop_stream()
    assert mesh.triton.metadata[-1]["traceparent"].split("-")[1] == trace_id


def test_a_keys_limits_hold(mesh: Mesh) -> None:
    limits = KeyLimits(requests_per_minute=1)
    secret = mesh.keys.create(OPERATOR, "default", "limited", Role.MEMBER, limits)[1]
    url, body = "/v2/models/demo/infer", {"inputs": []}
    assert mesh.http(secret).post(url, json=body).status_code == 400, "the fake only streams"
    refused = mesh.http(secret).post(url, json=body)
    assert refused.status_code == 429
    assert "Rate limit reached" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) > 1


def test_a_body_is_as_large_as_others_may_be(mesh: Mesh) -> None:
    large = b"0" * (4 * 2**20 + 1)
    answer = mesh.http().post("/v2/models/demo/infer", content=large)
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]


def test_a_drain_answers_what_was_asked_and_ends_the_stream(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, drain_seconds=20)
    mesh.start()
    try:
        heard = Heard()
        with triton.InferenceServerClient(mesh.grpc_address) as client:
            mesh.triton.answer = Answer(["a", "b", "c"], pause_seconds=0.1)
            client.start_stream(heard, headers=key_of(mesh))
            ask(client)
            assert heard.texts(1) == ["a"]
            mesh.drain()
            assert heard.texts(2) == ["b", "c"]
            _, error = heard.next()
            assert isinstance(error, InferenceServerException)
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert "restarted" in str(error)
    finally:
        mesh.stop()


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
LIMITS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def http(mesh: Mesh) -> httpx.Client:
    return mesh.http()


@LIMITS
@given(data=st.data())
def test_whatever_is_sent_is_answered_in_the_protocols_shape(
    http: httpx.Client, data: st.DataObject
) -> None:
    tensor = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.just("prompt") | anything,
                "shape": st.just([1]) | anything,
                "datatype": st.sampled_from(["BYTES", "INT8", "FP16", "x"]) | anything,
                "data": st.just(["x"]) | anything,
                "parameters": st.just({"binary_data_size": 3}) | anything,
                "colour": anything,
            },
        )
    )
    content = data.draw(
        st.binary(max_size=40) | st.just(json.dumps({"inputs": [tensor]}).encode() + b"xyz")
    )
    headers = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "inference-header-content-length": st.just(str(len(content) - 3))
                | st.text("0123456789-x", max_size=20),
                "content-encoding": st.sampled_from(["gzip", "deflate", "br", "identity"]),
            },
        )
    )
    ending = data.draw(st.sampled_from(["infer", "generate", "generate_stream", "ready", "x"]))
    model = data.draw(st.sampled_from(["demo", "demo@1", "nope", "demo%40champion", "@", "a%2Fb"]))
    method = data.draw(st.sampled_from(["POST", "POST", "GET", "PUT"]))
    url = f"/v2/models/{model}/{ending}"
    answer = http.request(method, url, content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and ending != "ready":
        assert isinstance(answer.json()["error"], str)
