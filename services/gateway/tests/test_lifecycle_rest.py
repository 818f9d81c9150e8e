"""Datasets, training, compressions, versions, deployments, rollouts and lineage over REST."""

from typing import Any

import httpx
import pytest
from gateway_fakes import DIGEST
from gateway_mesh import Mesh

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace_testkit.servers import wait_until


@pytest.fixture
def client(mesh: Mesh) -> httpx.Client:
    return mesh.http()


def ok(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return dict(response.json())


def refused(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["param"])


def add(mesh: Mesh, table: Any, message: Any) -> None:
    async def run() -> None:
        table.add(message)

    mesh.in_loop(run)


def a_dataset(mesh: Mesh) -> str:
    body = {
        "source": {"type": "python_standard_library"},
        "display_name": "stdlib",
        "recipe": {"vocabulary_size": 1024, "seed": 2**64 - 1},
    }
    return str(ok(mesh.http().post("/v1/datasets", json=body))["id"])


def test_datasets(mesh: Mesh, client: httpx.Client) -> None:
    identifier = a_dataset(mesh)
    made = ok(client.get(f"/v1/datasets/{identifier}"))
    assert made["status"] == "queued"
    assert made["recipe"]["vocabulary_size"] == 1024
    assert made["recipe"]["seed"] == 2**64 - 1
    assert made["source"] == {"type": "python_standard_library", "files": None}
    files = {"source": {"type": "files", "files": ["file-1", "file-2"]}}
    second = ok(client.post("/v1/datasets", json=files))
    assert second["source"]["files"] == ["file-1", "file-2"]
    listed = ok(client.get("/v1/datasets"))
    assert [item["id"] for item in listed["data"]] == [second["id"], identifier]
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (second["id"], identifier)
    assert ok(client.post(f"/v1/datasets/{identifier}/cancel"))["status"] == "cancelled"
    assert mesh.http(mesh.other_secret).get(f"/v1/datasets/{identifier}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "source"),
        ({"source": {"type": "web"}}, "source.type"),
        ({"source": {"type": "files"}}, "source.files"),
        ({"source": {"type": "files", "files": []}}, "source.files"),
        ({"source": {"type": "python_standard_library", "files": ["f"]}}, "source.files"),
        ({"source": {"type": "python_standard_library"}, "x": 1}, "x"),
        (
            {"source": {"type": "python_standard_library"}, "recipe": {"vocabulary_size": 5}},
            "recipe.vocabulary_size",
        ),
        (
            {"source": {"type": "python_standard_library"}, "recipe": {"heldout_fraction": 0.7}},
            "recipe.heldout_fraction",
        ),
        (
            {"source": {"type": "python_standard_library"}, "recipe": {"vocabulary_size": 2**40}},
            "recipe.vocabulary_size",
        ),
        ({"source": {"type": "python_standard_library"}, "display_name": "a\0b"}, "display_name"),
    ],
)
def test_dataset_mistakes(
    mesh: Mesh, client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    assert refused(client.post("/v1/datasets", json=body)) == param
    assert mesh.data.datasets.rows == {}


def a_run(mesh: Mesh, **change: Any) -> dict[str, Any]:
    body = {
        "model": "demo",
        "dataset": a_dataset(mesh),
        "architecture": {"hidden_size": 64, "layers": 2},
        "hyperparameters": {"learning_rate": 0.001, "total_steps": 50},
        **change,
    }
    return ok(mesh.http().post("/v1/training/runs", json=body))


def test_training_runs(mesh: Mesh, client: httpx.Client) -> None:
    run = a_run(mesh)
    assert (run["object"], run["status"], run["model"]) == ("training.run", "queued", "demo")
    assert run["architecture"]["hidden_size"] == 64
    assert run["hyperparameters"]["total_steps"] == 50
    path = f"/v1/training/runs/{run['id']}"
    assert ok(client.post(f"{path}/pause"))["status"] == "paused"
    assert ok(client.post(f"{path}/resume"))["status"] == "queued"
    again = client.post(f"{path}/resume")
    assert again.status_code == 400
    assert again.json()["error"]["code"] == "not_paused"
    assert ok(client.post(f"{path}/cancel"))["status"] == "cancelled"
    assert ok(client.get(path))["status"] == "cancelled"
    (metric,) = ok(client.get(f"{path}/metrics"))["data"]
    assert metric["metrics"] == {"train_loss": 2.5}
    other = mesh.http(mesh.other_secret)
    for ending in ("", "/checkpoints"):
        status = other.get(path + ending).status_code
        assert status == 404 or other.get(path + ending).json()["data"] == []
    assert ok(other.get("/v1/training/runs"))["data"] == []


def test_training_mistakes(mesh: Mesh, client: httpx.Client) -> None:
    body = {"model": "demo", "dataset": "dataset-1"}
    for change, param in (
        ({"model": "Bad Name"}, "model"),
        ({"dataset": "tenants/acme/datasets/d"}, "dataset"),
        ({"initial_checkpoint": "ckpt-1"}, "initial_checkpoint"),
        ({"hyperparameters": {"learning_rate": 7}}, "hyperparameters.learning_rate"),
        ({"hyperparameters": {"steps": 7}}, "hyperparameters.steps"),
        ({"architecture": {"layers": 1.5}}, "architecture.layers"),
    ):
        assert refused(client.post("/v1/training/runs", json={**body, **change})) == param
    assert mesh.trainer.runs.rows == {}


def a_checkpoint(mesh: Mesh, tenant: str = "default") -> str:
    dataset = data_pb2.Dataset(name=f"tenants/{tenant}/datasets/dataset-1")
    dataset.content.CopyFrom(lifecycle_pb2.Content(uri="file:///d", digest=DIGEST))
    add(mesh, mesh.data.datasets, dataset)
    name = f"tenants/{tenant}/runs/run-1/checkpoints/ckpt-1"
    checkpoint = trainer_pb2.Checkpoint(
        name=name,
        model="demo",
        step=10,
        final=True,
        dataset=dataset.name,
        content=lifecycle_pb2.Content(uri="file:///c", digest=DIGEST, size_bytes=3),
    )
    add(mesh, mesh.trainer.checkpoints, checkpoint)
    return name


def test_checkpoints(mesh: Mesh, client: httpx.Client) -> None:
    a_checkpoint(mesh)
    (checkpoint,) = ok(client.get("/v1/training/runs/run-1/checkpoints"))["data"]
    assert checkpoint["name"] == "runs/run-1/checkpoints/ckpt-1"
    assert (checkpoint["run"], checkpoint["final"]) == ("run-1", True)
    run = a_run(mesh, initial_checkpoint=checkpoint["name"])
    assert run["initial_checkpoint"] == checkpoint["name"]


def test_compressions(mesh: Mesh, client: httpx.Client) -> None:
    a_checkpoint(mesh)
    body = {
        "checkpoint": "runs/run-1/checkpoints/ckpt-1",
        "target": "openvino_int8",
        "gate": {"max_perplexity_increase": 0.1},
    }
    made = ok(client.post("/v1/compressions", json=body))
    assert made["checkpoint"] == body["checkpoint"]
    assert made["gate"]["max_perplexity_increase"] == 0.1
    assert made["gate"]["max_size_ratio"] is None
    (stored,) = mesh.compressor.compressions.rows.values()
    assert stored.checkpoint.content.uri == "file:///c"
    assert stored.checkpoint.evaluation.uri == "file:///d", "the dataset judges"
    path = f"/v1/compressions/{made['id']}"
    assert ok(client.get(path))["verdict"] is None
    assert ok(client.post(f"{path}/cancel"))["status"] == "cancelled"
    assert len(ok(client.get("/v1/compressions"))["data"]) == 1
    assert mesh.http(mesh.other_secret).get(path).status_code == 404
    assert refused(client.post("/v1/compressions", json={**body, "target": "abacus"})) == "target"
    wrong = {**body, "checkpoint": "ckpt-1"}
    assert refused(client.post("/v1/compressions", json=wrong)) == "checkpoint"
    other = mesh.http(mesh.other_secret).post("/v1/compressions", json=body)
    assert other.status_code == 404


def test_a_report_of_a_compression(mesh: Mesh, client: httpx.Client) -> None:
    a_checkpoint(mesh)
    body = {"checkpoint": "runs/run-1/checkpoints/ckpt-1", "target": "openvino_int8"}
    made, other = (ok(client.post("/v1/compressions", json=body)) for _ in range(2))
    stored = mesh.compressor.compressions.rows[f"tenants/default/compressions/{made['id']}"]
    stored.measurements.CopyFrom(
        compressor_pb2.Measurements(
            original_perplexity=20.0,
            artifact_perplexity=20.5,
            artifact_loads=[{"streams": 16, "tokens_per_second": 2400.0}],
            calibration={
                "source": "CALIBRATION_SOURCE_OWN",
                "windows": 64,
                "other": {"source": "CALIBRATION_SOURCE_GENERIC", "artifact_perplexity": 21.0},
            },
        )
    )
    path = f"/v1/compressions/{made['id']}/report"
    report = ok(client.get(path))
    rows = {row["name"]: row for row in report["rows"]}
    assert (rows["perplexity"]["original"], rows["perplexity"]["artifact"]) == (20.0, 20.5)
    assert rows["speed, 16 streams"]["artifact"] == 2400.0
    assert rows["speed, 16 streams"]["original"] is None, "not measured is no number"
    record = report["compression"]["measurements"]["calibration"]
    assert (record["source"], record["windows"], record["note"]) == ("own", 64, None)
    assert (record["other"]["source"], record["other"]["artifact_perplexity"]) == ("generic", 21.0)
    assert [each["id"] for each in report["others"]] == [other["id"]]
    plot = client.get(f"{path}.svg", params={"of": "model"})
    assert (plot.content, plot.headers["content-type"]) == (b"<svg/>", "image/svg+xml")
    assert refused(client.get(path, params={"of": "galaxy"})) == "of"
    for hidden in (path, f"{path}.svg"):
        assert mesh.http(mesh.other_secret).get(hidden).status_code == 404


def test_versions(mesh: Mesh, client: httpx.Client) -> None:
    async def run() -> None:
        for tenant, number in (("default", 1), ("default", 2), ("acme", 9)):
            mesh.registry.add_version(tenant, number)

    mesh.in_loop(run)
    listed = ok(client.get("/v1/versions"))["data"]
    assert [version["id"] for version in listed] == ["demo@2", "demo@1"]
    version = ok(client.get("/v1/versions/demo@2"))
    assert version["measurements"]["artifact_perplexity"] == 12.5
    assert version["measurements"]["kl_divergence"] is None
    assert (version["target"], version["status"]) == ("openvino_int8", "serving")
    taken = ok(client.post("/v1/versions/demo@2/quarantine", json={"reason": "bad"}))
    assert (taken["status"], taken["status_reason"]) == ("quarantined", "bad")
    assert client.get("/v1/versions/demo@9").status_code == 404
    alias = ok(client.post("/v1/models/demo/aliases", json={"alias": "best", "version": 2}))
    assert alias["aliases"] == {"best": 2}
    assert refused(client.post("/v1/models/demo/aliases", json={"alias": "B", "version": 2}))


def test_deployments(mesh: Mesh, client: httpx.Client) -> None:
    made = ok(client.post("/v1/deployments", json={"model": "demo"}))
    assert made["tracking"] == "every"
    assert made["targets"] == ["openvino_int8"]
    assert made["gate"]["max_perplexity_increase"] == 0.02
    assert made["strategy"]["type"] == "canary"
    path = f"/v1/deployments/{made['id']}"
    changed = ok(client.patch(path, json={"tracking": "final"}))
    assert (changed["tracking"], changed["strategy"]) == ("final", made["strategy"])
    immediate = ok(client.patch(path, json={"strategy": {"type": "immediate"}}))
    assert immediate["strategy"] == {"type": "immediate"}
    stale = client.patch(path, json={"tracking": "every"}, headers={"if-match": '"1"'})
    assert stale.status_code == 409
    assert ok(client.get(path))["etag"] == "3"
    assert len(ok(client.get("/v1/deployments"))["data"]) == 1
    for body, param in (
        ({"strategy": {"type": "canary", "steps": [2]}}, "strategy.steps[0]"),
        ({"strategy": {"type": "rolling"}}, "strategy"),
        ({"targets": []}, "targets"),
        ({"gate": {"max_size_ratio": 0}}, "gate.max_size_ratio"),
        ({"model": "other"}, "model"),
    ):
        assert refused(client.patch(path, json=body)) == param
    assert mesh.http(mesh.other_secret).patch(path, json={}).status_code == 404


def test_a_deployment_says_how_its_versions_are_compared(client: httpx.Client) -> None:
    made = ok(client.post("/v1/deployments", json={"model": "demo"}))
    assert set(made["analysis"].values()) == {None}
    path = f"/v1/deployments/{made['id']}"
    analysis = {"false_alarm_rate": 0.001, "maximum_latency_increase": 0, "minimum_pairs": 8}
    changed = ok(client.patch(path, json={"analysis": analysis}))["analysis"]
    assert changed == {**made["analysis"], **analysis}
    assert ok(client.patch(path, json={"tracking": "final"}))["analysis"] == changed
    for body in (
        {"false_alarm_rate": 0},
        {"maximum_latency_increase": -1},
        {"maximum_cut_increase": 2},
        {"maximum_score_decrease": "much"},
        {"minimum_pairs": 0.5},
        {"minimum_timed_answers": -1},
        {"maximum_colour_increase": 1},
    ):
        param = f"analysis.{next(iter(body))}"
        assert refused(client.patch(path, json={"analysis": body})) == param


def test_a_deployment_says_how_its_model_is_run(client: httpx.Client) -> None:
    made = ok(client.post("/v1/deployments", json={"model": "demo"}))
    waiting = {"max_queue_size": None, "default_timeout_seconds": None}
    assert made["serving"] == {
        "instance_count": None,
        "max_batch_size": None,
        "threads": None,
        "cache_gibibytes": None,
        "queue_policy": waiting,
    }
    path = f"/v1/deployments/{made['id']}"
    policy = {"max_queue_size": 4, "timeout_action": "reject"}
    engine = {"instance_count": 2, "threads": 3, "cache_gibibytes": 2}
    serving = {**engine, "queue_policy": policy, "priority_levels": None}
    changed = ok(client.patch(path, json={"serving": serving}))["serving"]
    assert (changed["instance_count"], changed["max_batch_size"]) == (2, None)
    assert (changed["threads"], changed["cache_gibibytes"]) == (3, 2)
    assert changed["queue_policy"] == {**waiting, "max_queue_size": 4}
    for body, param in (
        ({"instance_count": 0}, "serving.instance_count"),
        ({"instance_count": 17}, "serving.instance_count"),
        ({"max_batch_size": 0}, "serving.max_batch_size"),
        ({"threads": 0}, "serving.threads"),
        ({"cache_gibibytes": 0.5}, "serving.cache_gibibytes"),
        ({"queue_policy": {"max_queue_size": 0}}, "serving.queue_policy.max_queue_size"),
        ({"queue_policy": {"timeout_action": "delay"}}, "serving.queue_policy.timeout_action"),
        ({"preferred_batch_sizes": [4, 8]}, "serving.preferred_batch_sizes"),
        ({"max_queue_delay_seconds": 0.01}, "serving.max_queue_delay_seconds"),
        ({"priority_levels": 3}, "serving.priority_levels"),
        ({"default_priority_level": 2}, "serving.default_priority_level"),
        ({"colour": "red"}, "serving.colour"),
    ):
        assert refused(client.patch(path, json={"serving": body})) == param
    assert ok(client.get(path))["serving"] == changed


def test_rollouts(mesh: Mesh, client: httpx.Client) -> None:
    async def run() -> Any:
        return mesh.registry.add_rollout("default")

    identifier = mesh.in_loop(run).name.rsplit("/", 1)[-1]
    path = f"/v1/rollouts/{identifier}"
    assert ok(client.get(path))["status"] == "canary"
    assert ok(client.post(f"{path}/promote"))["status"] == "settled"
    reversed_ = ok(client.post(f"{path}/reverse", json={"reason": "slow"}))
    assert (reversed_["status"], reversed_["reason"]) == ("reversed", "slow")
    assert ok(client.post(f"{path}/reverse"))["reason"] == ""
    assert len(ok(client.get("/v1/rollouts?model=demo"))["data"]) == 1
    assert mesh.http(mesh.other_secret).post(f"{path}/promote").status_code == 404


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("run-1", "tenants/default/runs/run-1"),
        ("file-1", "tenants/default/files/file-1"),
        ("ftjob-1", "tenants/default/jobs/ftjob-1"),
        ("demo@1", "tenants/default/models/demo/versions/1"),
        ("demo", "tenants/default/models/demo/versions/1"),
        ("runs/run-1/checkpoints/ckpt-1", "tenants/default/runs/run-1/checkpoints/ckpt-1"),
        ("models/demo/versions/1", "tenants/default/models/demo/versions/1"),
        (DIGEST, DIGEST),
        ("fp_" + "ab" * 8, "sha256:" + "ab" * 8),
    ],
)
def test_lineage(mesh: Mesh, client: httpx.Client, reference: str, name: str) -> None:
    async def run() -> None:
        mesh.registry.add_version("default", 1)

    mesh.in_loop(run)
    lineage = ok(client.get(f"/v1/lineage/{reference}"))
    assert mesh.registry.lineage_asked[-1] == name
    assert lineage["nodes"][0]["id"] == name.removeprefix("tenants/default/")
    assert lineage["edges"][0]["effect"] == "compressions/compression-1"


@pytest.mark.parametrize(
    "reference", ["tenants/acme/runs/run-1", "a/b/c/d/e", "nobody@5", "run-a b", "fp_abc"]
)
def test_lineage_of_nothing(client: httpx.Client, reference: str) -> None:
    assert client.get(f"/v1/lineage/{reference}").status_code == 404


def test_an_idempotency_key_becomes_the_request_id(mesh: Mesh) -> None:
    body = {"source": {"type": "python_standard_library"}}
    ok(mesh.http(**{"idempotency-key": "once"}).post("/v1/datasets", json=body))
    assert mesh.seen.request_ids[-1] == "once"
    too_long = mesh.http(**{"idempotency-key": "x" * 200}).post("/v1/datasets", json=body)
    assert too_long.status_code == 400
    assert len(mesh.data.datasets.rows) == 1


def test_keys(mesh: Mesh) -> None:
    operator = mesh.http(mesh.operator_secret)
    made = ok(operator.post("/v1/keys", json={"tenant": "team-b", "display_name": "ci"}))
    assert made["secret"].startswith("sk-mr-")
    assert (made["tenant"], made["role"]) == ("team-b", "member")
    theirs = mesh.http(made["secret"])
    assert ok(theirs.get("/v1/models"))["data"] == []
    assert theirs.get("/v1/keys").status_code == 403
    assert theirs.post("/v1/keys", json={}).status_code == 403
    listed = ok(operator.get("/v1/keys?tenant=team-b"))["data"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert "secret" not in listed[0]
    revoked = ok(operator.delete(f"/v1/keys/{made['id']}?tenant=team-b"))
    assert revoked["revoked_at"] is not None
    assert operator.delete(f"/v1/keys/{made['id']}").status_code == 404, "another tenant's"
    assert operator.delete("/v1/keys/%00?tenant=team-b").status_code == 404
    assert refused(operator.post("/v1/keys", json={"tenant": "Bad Tenant"})) == "tenant"


def test_a_revoked_key_is_refused_within_a_second(mesh: Mesh) -> None:
    operator = mesh.http(mesh.operator_secret)
    made = ok(operator.post("/v1/keys", json={}))
    theirs = mesh.http(made["secret"])
    assert theirs.get("/v1/models").status_code == 200
    operator.delete(f"/v1/keys/{made['id']}")
    wait_until(lambda: theirs.get("/v1/models").status_code == 401, 1.2, "the key is refused")


def test_the_openapi_document_is_complete(client: httpx.Client) -> None:
    document = ok(client.get("/openapi.json"))
    assert document["security"] == [{"key": []}]
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) >= 45
    for (method, path), operation in operations.items():
        content = operation["responses"]["200"]["content"]
        assert any(shape.get("schema") != {} for shape in content.values()), (method, path)
        assert "4XX" in operation["responses"]
    for path in (
        "/v1/files",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/fine_tuning/jobs",
        "/v1/datasets",
        "/v1/training/runs",
        "/v1/compressions",
        "/v1/deployments",
        "/v1/rollouts",
        "/v1/lineage/{reference}",
        "/v1/events",
        "/v1/keys",
    ):
        assert path in document["paths"]
    upload = operations["post", "/v1/files"]["requestBody"]["content"]
    assert list(upload) == ["multipart/form-data"]
