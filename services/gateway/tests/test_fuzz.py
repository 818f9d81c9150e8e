"""Whatever is sent, nothing is ever answered with a 500, and everything in the same shape."""

import json
from typing import Any

import httpx
import pytest
from gateway_mesh import Mesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMITS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [{"role": "user", "content": "x"}],
        "stream": False,
        "temperature": 1.0,
        "stop": ["a"],
        "stream_options": {"include_usage": True},
        "seed": 1,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "logit_bias": {"5": 1.5},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "f", "schema": {"type": "object"}, "strict": True},
        },
    },
    "/v1/chat/completions?tools": {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"$ref": "#"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    },
    "/v1/completions": {
        "model": "demo",
        "prompt": [[1, 2], [3]],
        "max_tokens": 4,
        "stop": "a",
        "echo": True,
        "logprobs": 2,
        "n": 2,
    },
    "/v1/responses": {
        "model": "demo",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "instructions": "x",
        "text": {"format": {"type": "json_schema", "name": "f", "schema": {"type": "object"}}},
        "include": ["message.output_text.logprobs"],
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
    },
    "/tokenize": {"model": "demo", "messages": [{"role": "user", "content": "x"}]},
    "/detokenize": {"model": "demo", "tokens": [1]},
    "/v1/embeddings": {"model": "demo", "input": ["x"]},
    "/v1/fine_tuning/jobs": {
        "model": "demo",
        "training_file": "file-1",
        "suffix": "s",
        "seed": 1,
        "metadata": {"a": "b"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    },
    "/v1/datasets": {
        "source": {"type": "files", "files": ["file-1"]},
        "display_name": "d",
        "recipe": {"vocabulary_size": 512, "seed": 3, "heldout_fraction": 0.1},
    },
    "/v1/training/runs": {
        "model": "demo",
        "dataset": "dataset-1",
        "architecture": {"layers": 2},
        "hyperparameters": {"learning_rate": 0.1, "seed": 5},
    },
    "/v1/compressions": {
        "checkpoint": "runs/run-1/checkpoints/ckpt-1",
        "target": "openvino_int8",
        "gate": {"max_size_ratio": 0.5},
    },
    "/v1/deployments": {
        "model": "demo",
        "tracking": "every",
        "targets": ["openvino_int8"],
        "strategy": {"type": "canary", "steps": [0.5]},
    },
    "/v1/batches": {
        "input_file_id": "file-none",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"a": "b"},
    },
    "/v1/models/demo/aliases": {"alias": "best", "version": 1},
    "/v1/versions/demo/quarantine": {"reason": "x"},
    "/v1/keys": {"display_name": "x", "role": "member", "tenant": "fuzz"},
}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\0", "\ud800", "tenants/acme/files/x", "-", "..", "auto", "a" * 500]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def check(response: httpx.Response) -> None:
    assert response.status_code < 500 or response.status_code == 503, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def encode(document: Any) -> bytes:
    """JSON as a careless client writes it: NaN, infinities and lone surrogates too."""
    return json.dumps(document).encode()


@pytest.mark.parametrize("path", VALID)
@LIMITS
@given(data=st.data())
def test_one_wrong_value(mesh: Mesh, path: str, data: st.DataObject) -> None:
    valid = VALID[path]
    place = data.draw(st.sampled_from(places(valid)))
    document = replaced(valid, place, data.draw(anything))
    client = shared_client(mesh)
    check(client.post(path, content=encode(document), headers=JSON))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/datasets", "/v1/files"])
@LIMITS
@given(content=st.binary(max_size=200))
def test_any_bytes(mesh: Mesh, path: str, content: bytes) -> None:
    client = shared_client(mesh)
    check(client.post(path, content=content, headers=JSON))
    form = {"content-type": "multipart/form-data; boundary=x"}
    check(client.post("/v1/files", content=b"--x\r\n" + content, headers=form))


@LIMITS
@given(
    collection=st.sampled_from(
        [
            "files",
            "batches",
            "models",
            "fine_tuning/jobs",
            "datasets",
            "training/runs",
            "compressions",
            "deployments",
            "rollouts",
            "versions",
            "lineage",
            "keys",
        ]
    ),
    identifier=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    ending=st.sampled_from(["", "/cancel", "/pause", "/events", "/checkpoints", "/content"]),
    method=st.sampled_from(["GET", "POST", "DELETE", "PATCH"]),
)
def test_any_path(mesh: Mesh, collection: str, identifier: str, ending: str, method: str) -> None:
    from urllib.parse import quote

    path = f"/v1/{collection}/{quote(identifier, safe='')}{ending}"
    check(shared_client(mesh).request(method, path))


@LIMITS
@given(
    path=st.sampled_from(
        ["files", "batches", "datasets", "keys", "versions", "rollouts", "training/runs"]
    ),
    query=st.dictionaries(
        st.sampled_from(["after", "limit", "order", "purpose", "model", "tenant"]),
        st.text(st.characters(codec="utf-8"), max_size=20),
    ),
)
def test_any_query(mesh: Mesh, path: str, query: dict[str, str]) -> None:
    check(shared_client(mesh).get(f"/v1/{path}", params=query))


JSON = {"content-type": "application/json"}
_CLIENTS: dict[int, httpx.Client] = {}


def shared_client(mesh: Mesh) -> httpx.Client:
    """One connection a test, as an operator, so that keys are fuzzed too."""
    client = _CLIENTS.get(id(mesh))
    if client is None or client.is_closed:
        client = _CLIENTS[id(mesh)] = mesh.http(mesh.operator_secret)
    return client
