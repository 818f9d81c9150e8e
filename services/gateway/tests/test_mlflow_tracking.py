"""MLflow's own client against the gateway's ``/mlflow``: runs, their metrics and artifacts."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gateway_mesh import Mesh
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from millrace_runtime import manifest

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlflow


def client_of(mesh: Mesh, secret: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", secret)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # What wrote the runs is another process elsewhere; here it would lend its way to the files.
    _artifact_repos_cache.clear()
    uri = f"{mesh.url}/mlflow"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def client(tracked: Mesh, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    return client_of(tracked, tracked.member_secret, monkeypatch)


def run_of(client: MlflowClient) -> Any:
    experiment = client.get_experiment_by_name("demo")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`millrace.job` LIKE 'run-%'")
    return run


def test_a_tenants_own_runs_are_found_with_their_metrics(client: MlflowClient) -> None:
    found = client.search_experiments(filter_string="name LIKE 'de%'")
    assert [one.name for one in found] == ["demo"]
    run = run_of(client)
    assert run.data.tags["millrace.job"] == "run-1"
    assert run.data.params == {"seed": "7"}
    assert client.get_run(run.info.run_id).data.metrics == {"train_loss": 4.0 / 3}
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(one.step, one.value) for one in history] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]


def test_a_runs_artifacts_are_listed_and_downloaded(client: MlflowClient, tmp_path: Path) -> None:
    id = run_of(client).info.run_id
    assert [(one.path, one.is_dir) for one in client.list_artifacts(id)] == [("step-3", True)]
    (file,) = client.list_artifacts(id, "step-3")
    assert (file.path, file.file_size) == ("step-3/README.md", 12)
    found = client.download_artifacts(id, "step-3/README.md", str(tmp_path))
    assert Path(found).read_text() == "# what it is"
    whole = Path(client.download_artifacts(id, "", str(tmp_path)))
    assert (whole / "step-3" / "README.md").is_file()


@pytest.mark.parametrize("path", ["../../mlflow.db", "%2e%2e/%2e%2e/mlflow.db", "/etc/passwd", "x"])
def test_no_path_leads_out_of_a_runs_artifacts(
    tracked: Mesh, client: MlflowClient, path: str
) -> None:
    base = "/mlflow/api/2.0/mlflow-artifacts/artifacts"
    answer = tracked.http().get(f"{base}/runs/{run_of(client).info.run_id}/{path}")
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error_code"] in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


def test_another_tenants_runs_do_not_exist(
    tracked: Mesh, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = run_of(client)
    other = client_of(tracked, tracked.other_secret, monkeypatch)
    assert run_of(other).data.tags["millrace.job"] == "run-2"
    for ask in (
        lambda: other.get_run(mine.info.run_id),
        lambda: other.get_experiment(mine.info.experiment_id),
        lambda: other.search_runs([mine.info.experiment_id]),
        lambda: other.get_metric_history(mine.info.run_id, "train_loss"),
        lambda: other.log_metric(mine.info.run_id, "train_loss", 0.0),
        lambda: other.set_tag(mine.info.run_id, "a", "b"),
        lambda: other.create_run(mine.info.experiment_id),
    ):
        with pytest.raises(MlflowException) as refused:
            ask()
        assert refused.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    base = "/mlflow/api/2.0/mlflow-artifacts/artifacts"
    http = tracked.http(tracked.other_secret)
    assert http.get(f"{base}/runs/{mine.info.run_id}/step-3/README.md").status_code == 404
    assert http.get(base, params={"path": f"runs/{mine.info.run_id}"}).status_code == 404


def test_a_user_logs_runs_of_ones_own(client: MlflowClient) -> None:
    id = client.create_experiment("own/evaluation", tags={"team": "a"})
    assert client.get_experiment(id).name == "own/evaluation"
    assert client.get_experiment(id).tags["team"] == "a"
    run = client.create_run(id, run_name="first").info.run_id
    client.log_metric(run, "accuracy", 0.5, step=1)
    client.log_param(run, "model", "demo@1")
    client.log_batch(run, [Metric("f1", 0.25, 1, 0)], [Param("k", "v")], [RunTag("tag", "x")])
    client.set_tag(run, "note", "good")
    client.set_terminated(run)
    found = client.get_run(run)
    assert found.data.metrics == {"accuracy": 0.5, "f1": 0.25}
    assert found.data.params == {"model": "demo@1", "k": "v"}
    assert (found.data.tags["note"], found.data.tags["tag"]) == ("good", "x")
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")


def test_what_cannot_be_done_is_said(client: MlflowClient) -> None:
    with pytest.raises(MlflowException, match="artifact_location"):
        client.create_experiment("elsewhere", artifact_location="file:///etc")
    with pytest.raises(MlflowException, match="already exists"):
        client.create_experiment("demo")
    with pytest.raises(MlflowException, match="README of the gateway"):
        client.delete_run(run_of(client).info.run_id)
    with pytest.raises(MlflowException):
        client.search_experiments(filter_string="nonsense")


def test_a_versions_artifact_is_downloaded(
    tracked: Mesh, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tracked.data_root / "artifacts" / "one"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = manifest.temporary_sibling(target)
    (temporary / "folder").mkdir(parents=True)
    (temporary / "config.json").write_text(json.dumps({"layers": 2}))
    (temporary / "folder" / "weights.bin").write_bytes(b"w" * 10)
    digest = manifest.commit(temporary, target, "artifact", {})
    version = tracked.registry.add_version("default", 1)
    version.artifact.uri, version.artifact.digest = target.as_uri(), digest
    tracked.registry.add_model("default", "demo", aliases={"champion": 1})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{tracked.url}/mlflow")
    found = mlflow.artifacts.download_artifacts("models:/demo@champion", dst_path=str(tmp_path))
    assert json.loads((Path(found) / "config.json").read_text()) == {"layers": 2}
    assert (Path(found) / "folder" / "weights.bin").read_bytes() == b"w" * 10
    base = "/mlflow/api/2.0/mlflow-artifacts/artifacts/models/demo/1"
    assert tracked.http().get(f"{base}/../../../secrets/operator-key").status_code == 404
    assert tracked.http(tracked.other_secret).get(f"{base}/config.json").status_code == 404


def test_a_mesh_that_tracks_nothing_says_so(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(mesh, mesh.member_secret, monkeypatch)
    with pytest.raises(MlflowException, match="MLFLOW_TRACKING_URI"):
        client.search_experiments()
