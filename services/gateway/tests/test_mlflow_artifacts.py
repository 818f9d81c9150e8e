"""MLflow's own client against the gateway's ``/mlflow``: artifacts of users and of the mesh."""

import json
import posixpath
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gateway_mesh import TRACKED_FILE_BYTES as LARGEST_BYTES
from gateway_mesh import Mesh
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from requests import HTTPError

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.tuner.v1 import service_pb2 as tuner_pb2
from millrace_gateway.tracking_artifacts import checked
from millrace_runtime import manifest
from millrace_runtime.errors import InvalidArgument

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlflow

BASE = "/mlflow/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture
def client(tracked: Mesh, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    return client_of(tracked, tracked.member_secret, monkeypatch)


@pytest.fixture
def run(client: MlflowClient, request: pytest.FixtureRequest) -> str:
    """The id of a new run."""
    return new_run(client, request.node.name)


def client_of(mesh: Mesh, secret: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"{mesh.url}/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", secret)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _artifact_repos_cache.clear()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def new_run(client: MlflowClient, experiment: str, **tags: str) -> str:
    found = client.get_experiment_by_name(experiment)
    id = client.create_experiment(experiment) if found is None else found.experiment_id
    named = {f"millrace.{name}": value for name, value in tags.items()}
    return str(client.create_run(id, tags=named).info.run_id)


def listed(client: MlflowClient, run: str, path: str | None = None) -> list[tuple[str, bool]]:
    return [(one.path, one.is_dir) for one in client.list_artifacts(run, path)]


def test_artifacts_are_logged_listed_and_downloaded(
    client: MlflowClient, run: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    (source / "empty 100%.txt").touch()
    client.log_artifacts(run, str(source), "all")
    client.log_artifact(run, str(source / "empty 100%.txt"))
    client.log_text(run, "# Größe", "notes/card.md")
    client.log_text(run, "# new", "notes/card.md")
    client.log_dict(run, {"seed": 7}, "notes/config.json")
    with mlflow.start_run(run_id=run):
        mlflow.log_table({"x": [1]}, "notes/table.json")
    assert listed(client, run) == [("all", True), ("empty 100%.txt", False), ("notes", True)]
    assert listed(client, run, "all/deep") == [("all/deep/er", True)]
    (weights,) = client.list_artifacts(run, "all/deep/er")
    assert (weights.path, weights.file_size) == ("all/deep/er/weights.bin", 256_000)
    assert listed(client, run, "all/deep/er/weights.bin") == []
    whole = Path(client.download_artifacts(run, "", str(tmp_path / "whole")))
    assert (whole / "all" / "deep" / "er" / "weights.bin").read_bytes() == bytes(range(256)) * 1000
    assert (whole / "empty 100%.txt").read_bytes() == b""
    assert (whole / "notes" / "card.md").read_text() == "# new"
    assert json.loads((whole / "notes" / "config.json").read_text()) == {"seed": 7}
    experiment = client.get_run(run).info.experiment_id
    table = client.load_table(experiment, "notes/table.json", run_ids=[run])
    assert table["x"].tolist() == [1]


def test_artifacts_are_deleted(tracked: Mesh, client: MlflowClient, run: str) -> None:
    for path in ("a.txt", "folder/b.txt", "folder/c.txt"):
        client.log_text(run, path, path)
    uri = client.get_run(run).info.artifact_uri
    repository: Any = get_artifact_repository(uri, tracking_uri=f"{tracked.url}/mlflow")
    repository.delete_artifacts("folder/b.txt")
    repository.delete_artifacts("folder/b.txt")  # which is gone
    assert listed(client, run, "folder") == [("folder/c.txt", False)]
    repository.delete_artifacts("folder")
    assert listed(client, run) == [("a.txt", False)]
    repository.delete_artifacts()
    assert listed(client, run) == []
    client.log_text(run, "again", "a.txt")
    assert listed(client, run) == [("a.txt", False)]


def test_a_run_says_its_files_over_rest(tracked: Mesh, client: MlflowClient, run: str) -> None:
    client.log_text(run, "b", "a/b.txt")
    path, query = "/mlflow/api/2.0/mlflow/artifacts/list", {"run_id": run, "path": "a"}
    answer = tracked.http().get(path, params=query).json()
    assert answer["files"] == [{"path": "a/b.txt", "is_dir": False, "file_size": 1}]
    assert answer["root_uri"] == client.get_run(run).info.artifact_uri
    refused = tracked.http().get(path, params={**query, "page_token": "2"})
    assert (refused.status_code, "page" in refused.json()["message"]) == (400, True)


def test_a_file_that_is_too_large_is_refused_and_nothing_is_kept(
    client: MlflowClient, run: str, tmp_path: Path
) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(b"x" * LARGEST_BYTES)
    client.log_artifact(run, str(file), "fits")
    file.write_bytes(b"x" * (LARGEST_BYTES + 1))
    with pytest.raises(HTTPError, match=f"413.*larger than {LARGEST_BYTES} bytes"):
        client.log_artifact(run, str(file))
    file.write_bytes(b"x" * 16 * LARGEST_BYTES)
    with pytest.raises(HTTPError, match="413"):
        client.log_artifact(run, str(file), "fits")
    assert listed(client, run) == [("fits", True)]
    assert [one.file_size for one in client.list_artifacts(run, "fits")] == [LARGEST_BYTES]


def test_multipart_upload_falls_back_to_one_piece(
    client: MlflowClient, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    (tmp_path / "a.bin").write_bytes(b"abc")
    client.log_artifact(run, str(tmp_path / "a.bin"))
    assert [one.file_size for one in client.list_artifacts(run)] == [3]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/absolute",
        "..%2f..%2fout",
        "a/..%2fb",
        "%252e%252e/out",
        "a%5Cb",
        "a%00b",
        "a%23b",
        "a%2541",
        "a//b",
        "a?b",
        "C:%2fa",
        ".artifact.uploading.a",
        "n" * 256,
        "d/" * 500 + "a",
        "millrace",
        "millrace/compressions/a",
        "taken/below",
        "folder",
    ],
)
def test_names_that_cannot_be_are_refused(tracked: Mesh, client: MlflowClient, path: str) -> None:
    run = new_run(client, "refused names")
    client.log_text(run, "", "taken")
    client.log_text(run, "", "folder/file")
    store = tracked.data_root.parent / "mlflow-artifacts"
    before = sorted(file for file in store.rglob("*") if file.is_file())
    assert before
    answer = tracked.http().put(f"{BASE}/runs/{run}/{path}", content=b"x")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert sorted(file for file in store.rglob("*") if file.is_file()) == before


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("./\\%2e#"), max_size=30))
def test_a_path_that_is_taken_leads_below_the_run(path: str) -> None:
    try:
        found = checked(path)
    except InvalidArgument:
        return
    assert found == path
    joined = posixpath.normpath(posixpath.join("/run", path))
    assert joined == (f"/run/{path}" if path else "/run")


def test_another_tenants_artifacts_do_not_exist(
    tracked: Mesh, client: MlflowClient, run: str
) -> None:
    client.log_text(run, "mine", "a.txt")
    other = tracked.http(tracked.other_secret)
    file = f"{BASE}/runs/{run}/a.txt"
    for answer in (
        other.get(file),
        other.put(file, content=b"theirs"),
        other.delete(file),
        other.delete(f"{BASE}/runs/{run}"),
        other.get(BASE, params={"path": f"runs/{run}"}),
        other.get("/mlflow/api/2.0/mlflow/artifacts/list", params={"run_id": run}),
    ):
        assert answer.status_code == 404, answer.request
        assert answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert tracked.http("sk-mr-nobody").put(file, content=b"x").status_code == 401
    assert tracked.http().get(file).content == b"mine"


def test_versions_cannot_be_written(tracked: Mesh) -> None:
    for method in ("PUT", "DELETE"):
        answer = tracked.http().request(method, f"{BASE}/models/demo/1/config.json")
        assert (answer.status_code, "passed its gate" in answer.text) == (400, True)
        assert tracked.http().request(method, f"{BASE}/elsewhere/a").status_code == 404


def add_compression(tracked: Mesh, work: str, id: str) -> None:
    """A compression of a checkpoint of ``work``, its artifact in the data root."""
    target = tracked.data_root / "artifacts" / id
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = manifest.temporary_sibling(target)
    (temporary / "quality.json").write_text(json.dumps({"kl_divergence": 0.25}))
    (temporary / "README.md").write_text(f"# {id}")
    (temporary / "model.bin").write_bytes(b"w")
    made = compressor_pb2.Compression(name=f"tenants/default/compressions/{id}")
    made.checkpoint.name = f"tenants/default/{work}/checkpoints/ckpt-1"
    made.artifact.digest = manifest.commit(temporary, target, "artifact", {})
    made.artifact.uri = target.as_uri()
    tracked.compressor.compressions.add(made)


def test_a_training_runs_quality_reports_are_its_artifacts(
    tracked: Mesh, client: MlflowClient, tmp_path: Path
) -> None:
    run = new_run(client, "trained", job="run-7")
    assert listed(client, run) == []  # the trainer knows no such run
    tracked.trainer.runs.add(trainer_pb2.Run(name="tenants/default/runs/run-7", model="demo"))
    add_compression(tracked, "runs/run-7", "compression-a")
    add_compression(tracked, "runs/run-70", "compression-b")
    client.log_text(run, "mine", "notes.txt")
    assert listed(client, run) == [("millrace", True), ("notes.txt", False)]
    folder = "millrace/compressions"
    assert listed(client, run, "millrace") == [(folder, True)]
    assert listed(client, run, folder) == [(f"{folder}/compression-a", True)]
    found = client.list_artifacts(run, f"{folder}/compression-a")
    sizes = {one.path: one.file_size for one in found}
    assert sizes == {
        f"{folder}/compression-a/README.md": 15,
        f"{folder}/compression-a/quality.json": 23,
        f"{folder}/compression-a/report.svg": None,
    }
    whole = Path(client.download_artifacts(run, "", str(tmp_path))) / folder / "compression-a"
    assert json.loads((whole / "quality.json").read_text()) == {"kl_divergence": 0.25}
    assert (whole / "README.md").read_text() == "# compression-a"
    assert (whole / "report.svg").read_text() == "<svg/>"
    http = tracked.http()
    for path in (
        "compression-a/model.bin",
        "compression-b/quality.json",
        "compression-b/report.svg",
    ):
        assert http.get(f"{BASE}/runs/{run}/{folder}/{path}").status_code == 404
    with pytest.raises(HTTPError, match="the mesh's own"):
        client.log_text(run, "{}", f"{folder}/compression-a/quality.json")


def test_a_version_leads_to_the_run_of_its_job(tracked: Mesh, client: MlflowClient) -> None:
    run = new_run(client, "led to", job="run-9")
    version = tracked.registry.add_version("default", 1)
    version.checkpoint.name = "tenants/default/runs/run-9/checkpoints/ckpt-1"
    job = client.get_model_version("demo", "1").tags["millrace.job"]
    experiment = client.get_run(run).info.experiment_id
    (found,) = client.search_runs([experiment], f"tags.`millrace.job` = '{job}'")
    assert found.info.run_id == run


def test_another_tenants_tag_shows_nothing_of_ours(
    tracked: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked.trainer.runs.add(trainer_pb2.Run(name="tenants/default/runs/run-8", model="demo"))
    add_compression(tracked, "runs/run-8", "compression-c")
    other = client_of(tracked, tracked.other_secret, monkeypatch)
    run = new_run(other, "stolen", job="run-8")
    assert listed(other, run) == []
    path = f"{BASE}/runs/{run}/millrace/compressions/compression-c/quality.json"
    assert tracked.http(tracked.other_secret).get(path).status_code == 404


def add_file(tracked: Mesh, filename: str, content: bytes) -> str:
    name = f"tenants/default/files/{filename.partition('.')[0]}"
    file = data_pb2.File(name=name, filename=filename)
    file.purpose = data_pb2.FILE_PURPOSE_FINE_TUNE_RESULTS
    file.content.size_bytes = len(content)
    tracked.data.files.add(file)
    tracked.data.contents[name] = content
    return name


def test_a_fine_tuning_jobs_results_are_its_artifacts(
    tracked: Mesh, client: MlflowClient, tmp_path: Path
) -> None:
    table = b"trial,state,is_best,seconds\n1,finished,False,3\n2,finished,True,3\n"
    job = tuner_pb2.Job(name="tenants/default/jobs/ftjob-7", tuned_model="ft:demo")
    job.result_file = add_file(tracked, "ftjob-7-metrics.csv", b"step,train_loss\n1,2.5\n")
    job.trials_file = add_file(tracked, "ftjob-7-trials.csv", table)
    tracked.tuner.jobs.add(job)
    add_compression(tracked, "jobs/ftjob-7", "compression-d")
    worse, best = (new_run(client, "tuned", job=f"ftjob-7-trial-00{n}") for n in (1, 2))
    results = ["ftjob-7-metrics.csv", "ftjob-7-trials.csv"]
    for run in (worse, best):
        found = client.list_artifacts(run, "millrace/results")
        assert [one.path for one in found] == [f"millrace/results/{name}" for name in results]
        assert found[1].file_size == len(table)
    got = client.download_artifacts(best, "millrace/results/ftjob-7-metrics.csv", str(tmp_path))
    assert Path(got).read_bytes() == b"step,train_loss\n1,2.5\n"
    assert listed(client, best, "millrace/compressions") == [
        ("millrace/compressions/compression-d", True)
    ]
    assert listed(client, worse, "millrace") == [("millrace/results", True)]
    report = f"{BASE}/runs/{worse}/millrace/compressions/compression-d/quality.json"
    assert tracked.http().get(report).status_code == 404
    del tracked.data.files.rows[job.result_file]  # as its user may
    assert listed(client, worse, "millrace/results") == [
        ("millrace/results/ftjob-7-trials.csv", False)
    ]
