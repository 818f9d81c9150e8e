"""Mistakes are said in the client's own shape, and leave nothing behind."""

import json
from typing import Any

import grpc
import openai
import pytest

from millrace.trainer.v1 import service_pb2, service_pb2_grpc
from tests.e2e.lifecycle import ARCHITECTURE, Mesh

STDLIB = {"source": {"type": "python_standard_library"}}


def refused(mesh: Mesh, path: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    response = mesh.rest.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_malformed_file_names_line_and_field(mesh: Mesh) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in (*[good] * 9, "x")]
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai.files.create(file=("bad.jsonl", "".join(lines).encode()), purpose="fine-tune")
    assert "line 10" in str(caught.value)
    assert "messages" in str(caught.value)
    assert "bad.jsonl" not in [file.filename for file in mesh.openai.files.list()]


def test_an_unknown_field_is_named(mesh: Mesh) -> None:
    assert refused(mesh, "/datasets", {**STDLIB, "colour": "red"})["param"] == "colour"
    chat = {"model": "x", "messages": [{"role": "user", "content": "a"}], "logit_lens": 1}
    assert refused(mesh, "/chat/completions", chat)["param"] == "logit_lens"


def test_settings_that_do_not_go_together_are_named(mesh: Mesh, dataset: str) -> None:
    body = {
        "model": "never",
        "dataset": dataset,
        "architecture": {**ARCHITECTURE, "attention_heads": 7},
    }
    assert "architecture" in refused(mesh, "/training/runs", body)["message"]
    body = {"model": "never", "dataset": dataset, "hyperparameters": {"learning_rate": 7}}
    assert "learning_rate" in refused(mesh, "/training/runs", body)["message"]
    assert "never" not in [run["model"] for run in mesh.get("/training/runs")["data"]]


def test_a_dataset_that_is_not_there_is_named(mesh: Mesh) -> None:
    body = {"model": "never", "dataset": "dataset-none"}
    assert refused(mesh, "/training/runs", body)["param"] == "dataset"


def test_a_dataset_too_small_fails_with_what_is_needed(mesh: Mesh) -> None:
    file = mesh.openai.files.create(file=("a.txt", b"hello " * 20), purpose="user_data")
    made = mesh.post("/datasets", {"source": {"type": "files", "files": [file.id]}})
    ended = mesh.ended(f"/datasets/{made['id']}", 60)
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "dataset_too_small"


def test_a_request_sent_twice_is_carried_out_once(mesh: Mesh) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {**STDLIB, "recipe": {"maximum_bytes": 100_000}}
    first = mesh.post("/datasets", body, **headers)
    assert mesh.post("/datasets", body, **headers)["id"] == first["id"]
    other = mesh.rest.post("/datasets", json={**body, "display_name": "x"}, headers=headers)
    assert other.status_code == 409
    mesh.post(f"/datasets/{first['id']}/cancel", {})


def test_without_a_key_nothing_is_told(mesh: Mesh) -> None:
    response = mesh.rest.get("/models", headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_another_tenant_has_nothing_of_this_one(mesh: Mesh, model: str, dataset: str) -> None:
    made = mesh.post("/keys", {"tenant": "stranger", "role": "member"})
    stranger = {"Authorization": f"Bearer {made['secret']}"}
    assert mesh.rest.get(f"/datasets/{dataset}", headers=stranger).status_code == 404
    assert mesh.rest.get("/models", headers=stranger).json()["data"] == []
    body = {"model": model, "prompt": "import", "max_tokens": 1}
    assert mesh.rest.post("/completions", json=body, headers=stranger).status_code == 404
    with grpc.insecure_channel(mesh.layout.address("gateway.grpc")) as channel:
        stub = service_pb2_grpc.TrainerServiceStub(channel)
        metadata = (("authorization", f"Bearer {made['secret']}"),)
        request = service_pb2.ListRunsRequest(parent="tenants/default")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListRuns(request, metadata=metadata, timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        own = service_pb2.ListRunsRequest(parent="tenants/stranger")
        assert not stub.ListRuns(own, metadata=metadata, timeout=10).runs
