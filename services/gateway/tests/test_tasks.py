"""Tasks of deployments and compressions over REST."""

from typing import Any

import grpc
import httpx
import pytest
from gateway_mesh import Mesh
from test_lifecycle_rest import a_checkpoint, ok, refused

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace_runtime.rich_status import from_rpc_error

ROWS = b'{"prompt": "One and one?", "completion": "two"}\n'


@pytest.fixture
def client(mesh: Mesh) -> httpx.Client:
    return mesh.http()


def uploaded(
    mesh: Mesh, client: httpx.Client, purpose: str = "fine-tune", kind: str = "conversation"
) -> str:
    """A file, as the data service describes it."""
    file = {"file": ("rows.jsonl", ROWS)}
    made = ok(client.post("/v1/files", files=file, data={"purpose": purpose}))
    stored = mesh.data.files.rows[f"tenants/default/files/{made['id']}"]
    stored.content.uri = "file:///data/files/abc"
    stored.report.kind, stored.report.format = kind, "some_format"
    return str(made["id"])


def test_a_deployment_names_a_task_and_takes_it_away(mesh: Mesh, client: httpx.Client) -> None:
    file = uploaded(mesh, client)
    task: dict[str, Any] = {"file": file, "metric": "token_f1", "rows": 32, "seed": 2**53}
    gate = {"max_task_score_decrease": 0.02, "min_task_score": 0.5}
    body = {"model": "demo", "task": task, "gate": gate}
    made = ok(client.post("/v1/deployments", json=body))
    assert {**made["task"], **task} == made["task"]
    assert made["task"]["max_answer_tokens"] is None
    assert (made["gate"]["max_task_score_decrease"], made["gate"]["min_task_score"]) == (0.02, 0.5)
    (stored,) = mesh.registry.deployments.rows.values()
    assert stored.task.content.uri == "file:///data/files/abc", "clients never name it"
    assert stored.task.file == f"tenants/default/files/{file}"
    path = f"/v1/deployments/{made['id']}"
    assert ok(client.patch(path, json={"tracking": "final"}))["task"] == made["task"]
    other = ok(client.patch(path, json={"task": {"file": file, "metric": "contains"}}))
    assert (other["task"]["metric"], other["task"]["rows"]) == ("contains", None)
    assert ok(client.patch(path, json={"task": None}))["task"] is None


def test_a_task_that_cannot_be_is_refused(mesh: Mesh, client: httpx.Client) -> None:
    file = uploaded(mesh, client)
    good = {"file": file, "metric": "exact_match"}
    for change, param in (
        ({"file": "file-none"}, "task.file"),
        ({"file": uploaded(mesh, client, "user_data")}, "task.file"),
        ({"file": uploaded(mesh, client, kind="text")}, "task.file"),
        ({"metric": "bleu"}, "task.metric"),
        ({"rows": 0}, "task.rows"),
        ({"max_answer_tokens": 5000}, "task.max_answer_tokens"),
        ({"seed": -1}, "task.seed"),
        ({"temperature": 1}, "task.temperature"),
    ):
        body = {"model": "demo", "task": {**good, **change}}
        assert refused(client.post("/v1/deployments", json=body)) == param
    theirs = mesh.http(mesh.other_secret)
    body = {"model": "demo", "task": good}
    assert refused(theirs.post("/v1/deployments", json=body)) == "task.file"
    for gate in ({"min_task_score": 1.5}, {"max_task_score_decrease": -0.1}):
        body = {"model": "demo", "gate": gate}
        assert refused(client.post("/v1/deployments", json=body)) == f"gate.{next(iter(gate))}"


def test_a_compression_by_hand_has_a_task_and_its_report_both_scores(
    mesh: Mesh, client: httpx.Client
) -> None:
    a_checkpoint(mesh)
    file = uploaded(mesh, client)
    body = {
        "checkpoint": "runs/run-1/checkpoints/ckpt-1",
        "target": "openvino_int8",
        "task": {"file": file, "metric": "exact_match"},
    }
    made = ok(client.post("/v1/compressions", json=body))
    assert made["task"]["file"] == file
    stored = mesh.compressor.compressions.rows[f"tenants/default/compressions/{made['id']}"]
    measured = compressor_pb2.TaskMeasurement(
        metric="TASK_METRIC_EXACT_MATCH",
        original_score=0.5,
        artifact_score=0.0,
        rows=8,
        same_answers=0.25,
        digest="sha256:1",
        file=f"tenants/default/files/{file}",
    )
    stored.measurements.CopyFrom(compressor_pb2.Measurements(task=measured))
    report = ok(client.get(f"/v1/compressions/{made['id']}/report"))
    rows = {row["name"]: row for row in report["rows"]}
    row = rows["exact match of 8 answers"]
    assert (row["original"], row["artifact"], row["unit"]) == (0.5, 0.0, "share")
    assert rows["same answers as the original"]["artifact"] == 0.25
    told = report["compression"]["measurements"]["task"]
    assert (told["metric"], told["file"], told["skipped_rows"]) == ("exact_match", file, 0)


def test_over_grpc_too_a_tasks_content_is_what_its_owner_says(
    mesh: Mesh, client: httpx.Client
) -> None:
    file = f"tenants/default/files/{uploaded(mesh, client)}"
    stolen = lifecycle_pb2.Content(uri="file:///somebody-elses", digest="sha256:" + "a" * 64)
    task = compressor_pb2.Task(
        file=file, content=stolen, metric=compressor_pb2.TASK_METRIC_CONTAINS
    )
    wanted = registry_pb2.Deployment(
        model="demo", targets=[compressor_pb2.TARGET_OPENVINO_INT8], task=task
    )
    request = registry_pb2.CreateDeploymentRequest(parent="tenants/default", deployment=wanted)
    key = [("authorization", f"Bearer {mesh.member_secret}")]
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        stub = registry_grpc.RegistryServiceStub(channel)
        made = stub.CreateDeployment(request, metadata=key, timeout=5).deployment
        assert made.task.content == mesh.data.files.rows[file].content
        made.task.content.CopyFrom(stolen)
        update = registry_pb2.UpdateDeploymentRequest(deployment=made)
        changed = stub.UpdateDeployment(update, metadata=key, timeout=5).deployment
        assert changed.task.content.uri == "file:///data/files/abc"
        update.deployment.task.file = "tenants/default/files/file-none"
        with pytest.raises(grpc.RpcError) as caught:
            stub.UpdateDeployment(update, metadata=key, timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.field) == ("FILE_NOT_FOUND", "deployment.task.file")
