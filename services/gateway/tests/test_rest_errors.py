"""Every error has the OpenAI API's shape, and the right status."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace.data.v1 import service_pb2 as data_pb2
from millrace_gateway.rest.errors import parameter, response
from millrace_runtime.errors import ResourceExhausted, Unavailable

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def error(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    return dict(content["error"])


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_open_paths(mesh: Mesh, path: str) -> None:
    client = mesh.http()
    del client.headers["authorization"]
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nope", "/docs/x", "/livez/", "//livez"])
def test_everything_else_needs_a_key(mesh: Mesh, method: str, path: str) -> None:
    client = mesh.http()
    del client.headers["authorization"]
    response = client.request(method, path)
    assert error(response, 401)["code"] == "missing_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_unknown_url(mesh: Mesh) -> None:
    assert error(mesh.http().get("/v1/nope"), 404)["code"] == "unknown_url"
    assert error(mesh.http().put("/v1/models"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_required_parameter"),
        (b"[]", "invalid_type"),
        (b'"x"', "invalid_type"),
        (b"null", "invalid_type"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "demo"}', "missing_required_parameter"),
    ],
)
def test_malformed_bodies(mesh: Mesh, content: bytes, code: str) -> None:
    response = mesh.http().post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert error(response, 400)["code"] == code


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": 5}, "model"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    ],
)
def test_a_mistake_names_its_place(mesh: Mesh, change: dict[str, Any], param: str) -> None:
    found = error(mesh.http().post("/v1/chat/completions", json={**CHAT, **change}), 400)
    assert found["param"] == param
    assert found["type"] == "invalid_request_error"


def test_query_mistakes(mesh: Mesh) -> None:
    assert error(mesh.http().get("/v1/files?limit=0"), 400)["param"] == "limit"
    assert error(mesh.http().get("/v1/files?limit=x"), 400)["param"] == "limit"
    assert error(mesh.http().get("/v1/files?order=up"), 400)["param"] == "order"
    assert error(mesh.http().get("/v1/datasets?after=%00"), 400)["param"] == "after"


@pytest.mark.parametrize("length_is_said", [True, False])
def test_a_body_that_is_too_large(mesh: Mesh, length_is_said: bool) -> None:
    def chunks() -> Any:
        for _ in range(50):
            yield b'"' + b"x" * 100_000

    content = b"x" * 5_000_000 if length_is_said else chunks()
    response = mesh.http().post("/v1/chat/completions", content=content)
    assert error(response, 413)["code"] == "request_too_large"


def test_uploads_without_a_form(mesh: Mesh) -> None:
    client = mesh.http()
    for content, headers in (
        (b"x", {"content-type": "multipart/form-data"}),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}),
        (b"--b\r\n\r\n", {"content-type": "multipart/form-data; boundary=b"}),
        (b"{}", {"content-type": "application/json"}),
        (b"", {}),
    ):
        error(client.post("/v1/files", content=content, headers=headers), 400)
    extra = client.post(
        "/v1/files", files={"file": ("a", b"x")}, data={"purpose": "batch", "expires_after": "1"}
    )
    assert error(extra, 400)["param"] == "expires_after"
    text = client.post("/v1/files", data={"file": "x", "purpose": "batch"})
    assert error(text, 400)["param"] == "file"


@pytest.mark.parametrize("identifier", ["a b", "..", "%00", "x" * 200, "é", "tenants%2Facme"])
def test_impossible_ids_do_not_exist(mesh: Mesh, identifier: str) -> None:
    for path in ("files", "fine_tuning/jobs", "training/runs", "datasets", "deployments"):
        error(mesh.http().get(f"/v1/{path}/{identifier}"), 404)


def test_a_services_fault_tells_nothing_of_its_inside(mesh: Mesh) -> None:
    async def broken() -> None:
        mesh.data.datasets.rows["tenants/default/datasets/dataset-1"] = object()

    mesh.in_loop(broken)
    found = error(mesh.http().get("/v1/datasets/dataset-1"), 503)
    assert "object" not in found["message"]
    assert found["type"] == "server_error"


def test_a_fault_of_ours_is_logged_and_says_nothing(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        dataset = data_pb2.Dataset(name="tenants/default/datasets/dataset-1")
        dataset.source.files.SetInParent()
        mesh.data.datasets.rows[dataset.name] = dataset  # in a state that there is not

    mesh.in_loop(broken)
    found = error(mesh.http().get("/v1/datasets/dataset-1"), 500)
    assert found["code"] == "internal"
    assert "GET /v1/datasets/dataset-1 failed" in caplog.text
    assert "KeyError" in caplog.text


def test_too_many_at_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, maximum_generations=2)
    mesh.start()
    try:
        mesh.triton.answer = Answer(["x"], pause_seconds=0.5)
        body = {"model": "demo", "prompt": "x"}
        clients = [mesh.http() for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            answers = pool.map(lambda client: client.post("/v1/completions", json=body), clients)
            refused, *rest = sorted(answers, key=lambda answer: -answer.status_code)
        assert error(refused, 429)["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        assert [answer.status_code for answer in rest] == [200, 200]
        assert mesh.http().post("/v1/completions", json=body).status_code == 200
    finally:
        mesh.stop()


@pytest.mark.parametrize(
    ("location", "body", "path"),
    [
        (("messages", 0, "content", "str"), {"messages": [{"content": 5}]}, "messages[0].content"),
        (
            ("messages", 0, "content", "list[TextPart]", 1, "type"),
            {"messages": [{"content": [{}, {}]}]},
            "messages[0].content[1].type",
        ),
        (("stop", "constrained-str"), {"stop": 5}, "stop"),
        (("model",), {}, "model"),
        ((), {}, ""),
        (("strategy", "canary", "steps"), {"strategy": {"steps": 1}}, "strategy.steps"),
    ],
)
def test_parameter(location: tuple[str | int, ...], body: Any, path: str) -> None:
    assert parameter(location, body) == path


def test_a_full_disk_is_no_quota() -> None:
    full = response(ResourceExhausted("the disk is full", reason="STORAGE_FULL"))
    assert full.status_code == 507
    assert full.headers["retry-after"]
    assert b'"code":"storage_full"' in bytes(full.body)
    failing = response(Unavailable("the disk cannot be read", reason="STORAGE_ERROR"))
    assert failing.status_code == 503
    assert response(ResourceExhausted("slower", reason="RATE_LIMIT")).status_code == 429
