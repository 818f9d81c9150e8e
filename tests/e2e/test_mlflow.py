"""MLflow's own client steers the mesh: the alias `champion` on an older version rolls it out."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.e2e.lifecycle import Mesh


def test_champion_on_an_older_version_rolls_it_out(
    mesh: Mesh, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", mesh.key)
    uri = f"{mesh.layout.gateway_url}/mlflow"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    serving = int(client.get_model_version_by_alias(model, "champion").version)
    versions = [int(one.version) for one in client.search_model_versions(f"name = '{model}'")]
    older = min(versions)
    assert older < serving
    known = {rollout["id"] for rollout in mesh.get(f"/rollouts?model={model}")["data"]}
    client.set_registered_model_alias(model, "champion", str(older))

    def is_settled() -> bool:
        found = mesh.get(f"/rollouts?model={model}")["data"]
        return any(r["id"] not in known and r["status"] == "settled" for r in found)

    mesh.until(is_settled, "the older version settles", 240)
    assert client.get_model_version_by_alias(model, "champion").version == str(older)

    def answers() -> bool:
        answer = mesh.openai.completions.with_raw_response.create(
            model=model, prompt="import", max_tokens=2
        )
        return bool(answer.headers["x-millrace-version"] == f"{model}@{older}")

    mesh.until(answers, "the older version answers")
    # The tests after this one start from the newest.
    client.set_registered_model_alias(model, "champion", str(serving))
    mesh.until(
        lambda: client.get_model_version_by_alias(model, "champion").version == str(serving),
        "the newest one serves again",
        240,
    )


def test_a_runs_metrics_are_read_by_mlflows_client(
    mesh: Mesh, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", mesh.key)
    client = MlflowClient(tracking_uri=f"{mesh.layout.gateway_url}/mlflow")
    experiment = client.get_experiment_by_name(model)
    run = client.search_runs([experiment.experiment_id])[0]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert max(point.step for point in history) == 40


def test_a_runs_quality_reports_are_downloaded_by_mlflows_client(
    mesh: Mesh, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", mesh.key)
    client = MlflowClient(tracking_uri=f"{mesh.layout.gateway_url}/mlflow")
    job = client.get_model_version_by_alias(model, "champion").tags["millrace.job"]
    experiment = client.get_experiment_by_name(model)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`millrace.job` = '{job}'")
    id = run.info.run_id
    folders = client.list_artifacts(id, "millrace/compressions")
    assert folders
    path = client.download_artifacts(id, folders[0].path, str(tmp_path))
    measured = json.loads((Path(path) / "quality.json").read_text())
    found = mesh.get(f"/compressions/{Path(path).name}")["measurements"]
    assert measured["kl_divergence"] == pytest.approx(found["kl_divergence"])
    assert (Path(path) / "report.svg").read_text().startswith("<?xml")
    client.log_dict(id, {"approved": True}, "review/decision.json")
    assert [one.path for one in client.list_artifacts(id, "review")] == ["review/decision.json"]
