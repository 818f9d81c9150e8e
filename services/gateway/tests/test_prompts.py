"""Prompts of the unmodified ``openai`` package, before the real data service."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import httpx
import openai
import pytest
from data_process import FilesMesh
from gateway_fakes import TOOL_TEMPLATE, WEATHER_CALL, WEATHER_PARAMETERS, Answer
from gateway_mesh import Mesh

from millrace.data.v1 import prompts_pb2, prompts_pb2_grpc
from millrace_gateway.rest.prompt_versions import (
    FRESH_SECONDS,
    MAXIMUM_CHARACTERS,
    PromptVersions,
)
from millrace_runtime.errors import NotFound, Unavailable
from millrace_testkit.clock import FakeClock

TEMPLATE: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Answer {{tone}}."},
        {"role": "user", "content": "Q: {{question}}"},
    ],
    "variables": {"tone": {"default": "briefly"}},
    "examples": [{"input": "Q: 1+1", "output": "2"}],
}
SHOT = "<|user|>Q: 1+1\n<|assistant|>2\n"


@pytest.fixture(scope="module")
def files_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilesMesh]:
    found = FilesMesh(tmp_path_factory.mktemp("prompts"))
    yield found
    found.close()


@pytest.fixture
def http(files_mesh: FilesMesh) -> httpx.Client:
    return files_mesh.mesh.http()


@pytest.fixture
def client(files_mesh: FilesMesh) -> openai.OpenAI:
    mesh = files_mesh.mesh
    mesh.triton.reset()
    mesh.serve_routes([mesh.route(chat_template=TOOL_TEMPLATE)])
    return mesh.openai()


@pytest.fixture
def prompt_id(http: httpx.Client) -> str:
    return str(made(http, TEMPLATE)["id"])


def made(http: httpx.Client, template: Any, **more: Any) -> dict[str, Any]:
    response = http.post("/v1/prompts", json={**template, **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def asked(files_mesh: FilesMesh) -> list[str]:
    return [request["prompt"] for request in files_mesh.mesh.triton.requests]


def test_a_response_of_a_prompt(
    files_mesh: FilesMesh, client: openai.OpenAI, prompt_id: str
) -> None:
    variables: Any = {"question": {"type": "input_text", "text": "{{tone}}?"}}
    given: Any = {"id": prompt_id, "version": "1", "variables": variables}
    response = client.responses.create(model="demo", prompt=given)
    assert asked(files_mesh) == [
        f"<|system|>Answer briefly.\n{SHOT}<|user|>Q: {{{{tone}}}}?\n<|assistant|>"
    ]
    assert response.prompt is not None
    assert (response.prompt.id, response.prompt.version) == (prompt_id, "1")
    assert response.prompt.variables is not None
    assert response.prompt.model_dump(exclude_none=True)["variables"] == variables


def test_what_else_is_said_comes_after_the_prompt(
    files_mesh: FilesMesh, client: openai.OpenAI, prompt_id: str
) -> None:
    given: Any = {"id": prompt_id, "variables": {"question": "A", "tone": "kindly"}}
    with client.responses.stream(
        model="demo", prompt=given, input="More.", instructions="First."
    ) as stream:
        final = stream.get_final_response()
    assert final.prompt is not None
    assert final.prompt.version == "1"
    assert asked(files_mesh) == [
        f"<|system|>First.\n<|system|>Answer kindly.\n{SHOT}<|user|>Q: A\n<|user|>More.\n"
        "<|assistant|>"
    ]


def test_a_chat_of_a_prompt(files_mesh: FilesMesh, client: openai.OpenAI, prompt_id: str) -> None:
    prompt = {"id": prompt_id, "variables": {"question": "A"}}
    omitted: Any = openai.NOT_GIVEN
    client.chat.completions.with_raw_response.create(
        model="demo", messages=omitted, extra_body={"prompt": prompt, "messages": None}
    )
    more: Any = [{"role": "assistant", "content": "B"}, {"role": "user", "content": "Sure?"}]
    client.chat.completions.create(model="demo", messages=more, extra_body={"prompt": prompt})
    alone, continued = asked(files_mesh)
    assert alone == f"<|system|>Answer briefly.\n{SHOT}<|user|>Q: A\n<|assistant|>"
    assert continued == alone + "B\n<|user|>Sure?\n<|assistant|>"


def test_a_prompts_tools_are_offered(
    files_mesh: FilesMesh, client: openai.OpenAI, http: httpx.Client
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_PARAMETERS}}
    prompt: Any = {"id": made(http, TEMPLATE, tools=[tool])["id"], "variables": {"question": "A"}}
    files_mesh.mesh.triton.answer = Answer([*WEATHER_CALL])
    response = client.responses.create(model="demo", prompt=prompt)
    assert [item.type for item in response.output] == ["function_call"]
    plain = client.responses.create(model="demo", prompt=prompt, tools=[])
    assert [item.type for item in plain.output] == ["message"]
    first, second = asked(files_mesh)
    assert "weather" in first
    assert "weather" not in second


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"id": "pmpt-none"}, 404, "prompt.id"),
        ({"id": "../x"}, 404, "prompt.id"),
        ({"version": "9"}, 404, "prompt.version"),
        ({"version": "x"}, 404, "prompt.version"),
        ({"version": "0"}, 404, "prompt.version"),
        ({"version": 1}, 400, "prompt.version"),
        ({"variables": None}, 400, "prompt.variables.question"),
        ({"variables": {"question": "A", "quest": "B"}}, 400, "prompt.variables.quest"),
        ({"variables": {"question": 7}}, 400, "prompt.variables.question"),
        (
            {"variables": {"question": {"type": "input_image", "image_url": "x"}}},
            400,
            "prompt.variables.question.image_url",
        ),
        ({"name": "x"}, 400, "prompt.name"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
@pytest.mark.usefixtures("client")
def test_what_is_wrong_is_named(
    http: httpx.Client, prompt_id: str, path: str, change: Any, status: int, param: str
) -> None:
    prompt = {"id": prompt_id, "version": "1", "variables": {"question": "A"}, **change}
    response = http.post(path, json={"model": "demo", "prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_one_of_the_two_is_needed(client: openai.OpenAI, http: httpx.Client) -> None:
    for path, param in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
        error = http.post(path, json={"model": "demo"}).json()["error"]
        assert error["param"] == param
        assert error["code"] == "missing_required_parameter"


def test_prompts_and_their_versions(http: httpx.Client) -> None:
    prompt = made(http, TEMPLATE, name="questions")
    path = f"/v1/prompts/{prompt['id']}"
    assert http.get(path).json() == prompt
    assert (prompt["name"], prompt["latest_version"]) == ("questions", "1")
    simple = {"messages": [{"role": "user", "content": "{{a}} {{b}}"}]}
    second = http.post(f"{path}/versions", json=simple).json()
    assert (second["id"], second["variables"]) == ("2", {"a": {}, "b": {}})
    listed = http.get(f"{path}/versions", params={"limit": 1}).json()
    assert (listed["data"], listed["has_more"]) == ([second], True)
    rest = http.get(f"{path}/versions", params={"after": "2"}).json()
    (first,) = rest["data"]
    assert first["examples"] == [
        {
            "messages": [
                {"role": "user", "content": "Q: 1+1"},
                {"role": "assistant", "content": "2"},
            ]
        }
    ]
    assert http.get(f"{path}/versions/1").json() == first
    assert http.get(f"{path}/versions/latest").json() == second
    rendered = http.post(f"{path}/render", json={"variables": {"a": "x", "b": "{{a}}"}}).json()
    assert rendered["messages"] == [{"role": "user", "content": "x {{a}}"}]
    missing = http.post(f"{path}/render", json={"version": "1"}).json()["error"]
    assert missing["param"] == "variables.question"
    assert http.post(f"{path}/render", json={"version": "7"}).json()["error"]["param"] == "version"
    assert prompt["id"] in {one["id"] for one in http.get("/v1/prompts").json()["data"]}


def test_the_same_request_twice_is_one_prompt(http: httpx.Client) -> None:
    headers = {"idempotency-key": "prompt-1"}
    first, second = (http.post("/v1/prompts", json=TEMPLATE, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    other = http.post("/v1/prompts", json={**TEMPLATE, "name": "x"}, headers=headers)
    assert other.status_code == 409


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "{{two words}}"}]}, "messages[0].content"),
        ({"messages": "x"}, "messages"),
        ({"examples": [{"input": "x"}]}, "examples[0].output"),
        ({"variables": {"tome": {}}}, "variables.tome"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": "{{question}} {{tone}}",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].id",
        ),
        ({"model": "demo"}, "model"),
        ({"name": "x" * 129}, "name"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}], "variables": {}}, "messages"),
    ],
)
def test_a_mistake_of_a_template_names_its_field(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/prompts", json={**TEMPLATE, **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_another_tenant_has_other_prompts(
    files_mesh: FilesMesh, client: openai.OpenAI, http: httpx.Client, prompt_id: str
) -> None:
    prompt: Any = {"id": prompt_id, "version": "1", "variables": {"question": "A"}}
    client.responses.create(model="demo", prompt=prompt)  # it is known from now on
    mesh = files_mesh.mesh
    mesh.serve_routes([mesh.route(), mesh.route(tenant="acme")])
    other = mesh.http(mesh.other_secret)
    answer = other.post("/v1/responses", json={"model": "demo", "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "prompt.id")
    path = f"/v1/prompts/{prompt_id}"
    attempts = [other.get(path), other.delete(path), other.get(f"{path}/versions/1")]
    assert {attempt.status_code for attempt in attempts} == {404}
    assert http.get(path).status_code == 200


def test_a_deleted_prompt_is_gone(
    client: openai.OpenAI, http: httpx.Client, prompt_id: str
) -> None:
    prompt: Any = {"id": prompt_id, "version": "1", "variables": {"question": "A"}}
    client.responses.create(model="demo", prompt=prompt)
    assert http.delete(f"/v1/prompts/{prompt_id}").json()["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="demo", prompt=prompt)
    assert http.delete(f"/v1/prompts/{prompt_id}").status_code == 404


def test_the_public_grpc_api_has_prompts_too(files_mesh: FilesMesh) -> None:
    key = [("authorization", f"Bearer {files_mesh.mesh.member_secret}")]
    text = '{"messages": [{"role": "user", "content": "tenants/other/files/x"}]}'
    with grpc.insecure_channel(files_mesh.mesh.grpc_address) as channel:
        stub = prompts_pb2_grpc.PromptServiceStub(channel)
        request = prompts_pb2.CreatePromptRequest(parent="tenants/default", template_json=text)
        assert stub.CreatePrompt(request, metadata=key, timeout=20).version.number == 1
        request.parent = "tenants/acme"
        with pytest.raises(grpc.RpcError) as refused:
            stub.CreatePrompt(request, metadata=key, timeout=20)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


class Service:
    """Answers for versions, and counts how often it is asked."""

    def __init__(self, text: str = "x") -> None:
        self.text = text
        self.error: Exception | None = None
        self.asked: list[int] = []

    async def __call__(
        self, request: prompts_pb2.GetPromptVersionRequest
    ) -> prompts_pb2.GetPromptVersionResponse:
        self.asked.append(request.number)
        if self.error:
            raise self.error
        template = f'{{"messages":[{{"role":"user","content":"{self.text}"}}],"variables":{{}}}}'
        version = prompts_pb2.PromptVersion(number=request.number or 3, template_json=template)
        return prompts_pb2.GetPromptVersionResponse(version=version)


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


NAME = "tenants/acme/prompts/pmpt-1"


@in_a_loop
async def test_a_known_version_is_asked_for_again_after_a_while() -> None:
    service, clock = Service(), FakeClock()
    known = PromptVersions(service, lambda: clock().timestamp())
    first = await known.get(NAME, 1)
    assert await known.get(NAME, 1) is first
    assert (await known.get(NAME, 0)).number == 3
    await known.get(NAME, 0)
    assert service.asked == [1, 0, 0]
    clock.advance(FRESH_SECONDS + 1)
    await known.get(NAME, 1)
    assert service.asked == [1, 0, 0, 1]


@in_a_loop
async def test_while_the_service_is_away_what_is_known_is_used() -> None:
    service, clock = Service(), FakeClock()
    known = PromptVersions(service, lambda: clock().timestamp())
    first, newest = await known.get(NAME, 1), await known.get(NAME, 0)
    clock.advance(FRESH_SECONDS + 1)
    service.error = Unavailable("away", reason="AWAY")
    assert await known.get(NAME, 1) is first
    assert await known.get(NAME, 0) is newest
    with pytest.raises(Unavailable):
        await known.get(NAME, 2)
    service.error = NotFound("deleted")
    with pytest.raises(NotFound) as gone:
        await known.get(NAME, 1)
    service.error = Unavailable("away", reason="AWAY")
    with pytest.raises(Unavailable):
        await known.get(NAME, 1)
    assert gone.value.reason == "NOT_FOUND"


@in_a_loop
async def test_what_is_kept_has_a_bound() -> None:
    service = Service("x" * (MAXIMUM_CHARACTERS // 4))
    known = PromptVersions(service)
    for number in (1, 2, 3, 4):
        await known.get(NAME, number)
    await known.get(NAME, 4)
    assert service.asked == [1, 2, 3, 4]
    await known.get(NAME, 1)
    assert service.asked == [1, 2, 3, 4, 1]


ROWS = b"".join(b'{"question": "Q%d", "answer": "A"}\n' % n for n in range(12))


def test_a_job_is_made_with_a_prompt(mesh: Mesh) -> None:
    client = mesh.openai()
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    given = {"id": "pmpt-1", "version": "2", "completion": "answer"}
    job = client.fine_tuning.jobs.create(
        model="demo", training_file=file.id, extra_body={"prompt": given}
    )
    assert job.model_extra is not None
    assert job.model_extra["prompt"] == {**given, "digest": ""}
    asked = mesh.tuner.created[-1].prompt
    assert (asked.prompt, asked.version) == ("tenants/default/prompts/pmpt-1", 2)
    plain = client.fine_tuning.jobs.create(model="demo", training_file=file.id)
    assert plain.model_extra is not None
    assert plain.model_extra["prompt"] is None


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ({"id": "a/b"}, "prompt.id"),
        ({"id": "pmpt-1", "version": "0"}, "prompt.version"),
        ({"id": "pmpt-1", "version": 2}, "prompt.version"),
        ({"id": "pmpt-1", "completion": ""}, "prompt.completion"),
        ({"id": "pmpt-1", "variables": {}}, "prompt.variables"),
        ({}, "prompt.id"),
    ],
)
def test_a_wrong_prompt_of_a_job_is_named(mesh: Mesh, prompt: Any, param: str) -> None:
    body = {"model": "demo", "training_file": "file-1", "prompt": prompt}
    response = mesh.http().post("/v1/fine_tuning/jobs", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_rows_of_columns_may_be_uploaded(http: httpx.Client) -> None:
    sent = http.post(
        "/v1/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"}
    )
    assert sent.status_code == 200, sent.text
