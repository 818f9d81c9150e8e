import math
from pathlib import Path

import pytest

from millrace_runtime.tracking import Tracking

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlflow


def test_tracking_reaches_mlflow_and_finds_its_run_again(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for step in (1, 2):  # as a job that was started twice
        wanted = {"tags": "blue,green", "entity": ""}
        tracking = Tracking(uri, "ftjob-1", "ft:demo", {"seed": 7}, name="mine", tags=wanted)
        tracking.log(step, {"train_loss": math.e / step})
        tracking.close()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ft:demo")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"seed": "7"}
    assert run.info.run_name == "mine"
    assert run.data.tags["tags"] == "blue,green"
    assert "entity" not in run.data.tags
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, math.e), (2, math.e / 2)]


def test_tracking_that_fails_leaves_the_run_alone(capfd: pytest.CaptureFixture[str]) -> None:
    tracking = Tracking("nonsense://", "ftjob-1", "ft:demo", {})
    tracking.log(1, {"train_loss": 1.0})
    tracking.close()
    assert "tracking at MLflow ends" in capfd.readouterr().err
