"""Deadlines of REST clients, as the ``openai`` package and its users meet them."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until

MESSAGES: Any = [{"role": "user", "content": "x"}]
CHAT: dict[str, Any] = {"model": "demo", "messages": MESSAGES}
SHORTLY = {"grpc-timeout": "300m"}
# Of these nothing comes before the test is long over.
SILENT = Answer(["a"], pause_seconds=60)
HELD = Answer(["a", "b"], pauses=[0, 60])
# So many that some of them share a call to the engine.
SEVERAL = 6


@pytest.fixture(scope="module")
def shared_narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("narrow"), endpoint_generations=1, queue_seconds=60.0)
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def narrow(shared_narrow: Mesh) -> Mesh:
    """A gateway with one place at its engine."""
    shared_narrow.reset()
    return shared_narrow


def metric(mesh: Mesh, name: str) -> float:
    for found in mesh.http().get("/metrics").text.splitlines():
        if found.startswith(f"{name} "):
            return float(found.rpartition(" ")[2])
    raise AssertionError(f"there is no {name}")


def is_idle(mesh: Mesh) -> bool:
    return mesh.triton.running == 0 and metric(mesh, "millrace_generations_active") == 0


def check_it_says_so(error: openai.APIStatusError) -> None:
    assert error.status_code == 504
    assert error.code == "deadline_exceeded"
    assert error.type == "server_error"
    assert error.response.headers["x-should-retry"] == "false"


Ask = Callable[[openai.OpenAI, Any], object]
ASKS: dict[str, Ask] = {
    "chat": lambda client, options: client.chat.completions.create(**CHAT, **options),
    "streamed": lambda client, options: client.chat.completions.create(
        **CHAT, stream=True, **options
    ),
    "choices": lambda client, options: client.chat.completions.create(**CHAT, n=SEVERAL, **options),
    "completion": lambda client, options: client.completions.create(
        model="demo", prompt=["x", "y"], **options
    ),
    "response": lambda client, options: client.responses.create(
        model="demo", input="x", store=False, **options
    ),
    "embedding": lambda client, options: client.embeddings.create(
        model="demo", input=["x", "y"], **options
    ),
}


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize(
    "header", [SHORTLY, {"x-stainless-read-timeout": "0.3"}], ids=["any client", "SDK"]
)
def test_an_answer_that_does_not_come_in_time(
    mesh: Mesh, kind: str, header: dict[str, str]
) -> None:
    """The client is there and waits on: it is the header alone that ends its request."""
    mesh.triton.answer = SILENT
    client = mesh.openai().with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        ASKS[kind](client, {"extra_headers": header})
    check_it_says_so(caught.value)
    asked = len(mesh.triton.requests)
    assert asked <= {"choices": SEVERAL, "completion": 2}.get(kind, 1), "it is not tried again"
    wait_until(lambda: is_idle(mesh), 20, "the engine was told")
    assert mesh.triton.cancelled == asked


def test_the_sdks_own_timeout(mesh: Mesh) -> None:
    mesh.triton.answer = SILENT
    # Who comes first, its timer or the gateway's answer, is open; what comes of it is not.
    with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
        mesh.openai().chat.completions.create(**CHAT, timeout=0.3)
    wait_until(lambda: is_idle(mesh), 20, "the engine was told")


def test_in_a_stream_it_is_said_in_the_stream(mesh: Mesh) -> None:
    mesh.triton.answer = HELD
    stream = mesh.openai().chat.completions.create(
        **CHAT, stream=True, extra_headers={"grpc-timeout": "3S"}
    )
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert caught.value.code == "deadline_exceeded"
    assert texts == ["", "a"]
    wait_until(lambda: is_idle(mesh), 20, "the engine was told")
    assert mesh.triton.cancelled == 1


def test_a_stream_of_choices_ends_as_a_whole(mesh: Mesh) -> None:
    mesh.triton.answer = HELD
    stream = mesh.openai().chat.completions.create(
        **CHAT, stream=True, n=SEVERAL, extra_headers={"grpc-timeout": "3S"}
    )
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "deadline_exceeded"
    wait_until(lambda: is_idle(mesh), 20, "the engine was told")


def test_a_response_fails(mesh: Mesh) -> None:
    mesh.triton.answer = HELD
    events = mesh.openai().responses.create(
        model="demo", input="x", store=False, stream=True, extra_headers={"grpc-timeout": "3S"}
    )
    last = list(events)[-1]
    assert last.type == "response.failed"
    assert "deadline" in str(last.response.error)
    wait_until(lambda: is_idle(mesh), 20, "the engine was told")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_who_waits_too_long_for_a_place(narrow: Mesh, is_streamed: bool) -> None:
    narrow.triton.answer = HELD
    held = narrow.openai().chat.completions.create(**CHAT, stream=True)
    next(iter(held))
    with pytest.raises(openai.InternalServerError) as caught:
        narrow.openai().chat.completions.create(**CHAT, stream=is_streamed, extra_headers=SHORTLY)
    check_it_says_so(caught.value)
    assert metric(narrow, 'millrace_admission_waiting{priority="default"}') == 0
    assert len(narrow.triton.requests) == 1, "the engine hears nothing of it"
    held.close()
    wait_until(lambda: is_idle(narrow), 20, "the place is free")
    narrow.triton.answer = Answer(["ok"])
    answer = narrow.openai().chat.completions.create(**CHAT, extra_headers={"grpc-timeout": "1M"})
    assert answer.choices[0].message.content == "ok"


@pytest.mark.parametrize("kind", ASKS)
def test_a_header_that_says_nothing_is_refused_by_name(mesh: Mesh, kind: str) -> None:
    with pytest.raises(openai.BadRequestError, match="grpc-timeout") as caught:
        ASKS[kind](mesh.openai(), {"extra_headers": {"grpc-timeout": "30 seconds"}})
    assert caught.value.param == "grpc-timeout"
    assert not mesh.triton.requests
    ASKS[kind](mesh.openai(), {"extra_headers": {"x-stainless-read-timeout": "soon"}})


@pytest.mark.parametrize("method", ["infer", "generate", "generate_stream"])
def test_tensors_too(mesh: Mesh, method: str) -> None:
    body = {"inputs": []} if method == "infer" else {"text_input": "x"}
    answer = mesh.http(**{"grpc-timeout": "1"}).post(f"/v2/models/demo/{method}", json=body)
    assert answer.status_code == 400
    assert "grpc-timeout" in answer.json()["error"]


def test_the_document_knows_the_header(mesh: Mesh) -> None:
    paths = mesh.http().get("/openapi.json").json()["paths"]
    for noun in ("chat/completions", "completions", "responses", "embeddings"):
        names = [found["name"] for found in paths[f"/v1/{noun}"]["post"]["parameters"]]
        assert names.count("grpc-timeout") == 1
