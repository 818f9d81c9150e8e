"""A sweep on a dataset of examples, by the service as it runs, which is killed on the way."""

from pathlib import Path

import psutil
import pytest
from neighbour_servers import Neighbours
from test_service import RunningService, checkpoints, neighbours, service
from tuner_builders import conversations, write_jsonl

from millrace.data.v1 import service_pb2 as data
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import sweep_pb2
from millrace_runtime import manifest
from millrace_testkit.servers import wait_until

__all__ = ["neighbours", "service"]

pytestmark = pytest.mark.timeout(600)

DATASET = "tenants/acme/datasets/dataset-1"


def add_dataset(neighbours: Neighbours, folder: Path) -> None:
    directory = folder / "data/datasets/dataset-1"
    temporary = manifest.temporary_sibling(directory)
    write_jsonl(temporary / "train.jsonl", conversations(30))
    digest = manifest.commit(temporary, directory, "examples", {})
    neighbours.data.datasets[DATASET] = data.Dataset(
        name=DATASET,
        source=data.DatasetSource(examples=data.ExampleSet(names=["tenants/acme/files/file-1"])),
        state=lifecycle.WORK_STATE_SUCCEEDED,
        content=lifecycle.Content(uri=directory.as_uri(), digest=digest, size_bytes=1),
        documents={"kept_train": 30},
    )


def create(service: RunningService) -> str:
    request = pb.CreateJobRequest(
        parent="tenants/acme",
        base_model="demo",
        training_file=DATASET,
        method=method_pb.Method(
            hyperparameters=method_pb.Hyperparameters(epochs=1, batch_size=8),
            supervised=method_pb.Supervised(),
        ),
        sweep=sweep_pb2.Sweep(
            trials=2,
            parameters={"learning_rate_multiplier": sweep_pb2.Range(low=0.5, high=4, log=True)},
        ),
    )
    return str(service.call("CreateJob", request).job.name)


def told(service: RunningService, name: str) -> list[str]:
    request = pb.ListJobEventsRequest(parent=name, page_size=1000)
    return [event.message for event in service.call("ListJobEvents", request).events]


def test_killed_amid_a_trial_it_goes_on_and_the_best_becomes_the_jobs(
    service: RunningService, neighbours: Neighbours, tmp_path: Path
) -> None:
    add_dataset(neighbours, tmp_path)
    name = create(service)
    wait_until(lambda: service.job(name).progress.metrics["trial"] == 2, 240, "the second trial")
    processes = service.children()
    service.kill()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert len(processes) >= 2  # the sweep and its trial
    assert alive == []
    service.start()
    wait_until(lambda: service.job(name).progress.phase == "rollout", 240, "the sweep's end")
    made = checkpoints(service, name)
    assert [checkpoint.final for checkpoint in made] == [True]
    job = service.job(name)
    assert job.training_file == DATASET
    assert (job.result_file, job.trials_file) == (
        "tenants/acme/files/file-result-1",
        "tenants/acme/files/file-result-2",
    )
    (_, metrics), (header, trials) = neighbours.data.uploads
    assert metrics.startswith(b"step,train_loss,")
    assert header.filename.endswith("-trials.csv")
    rows = trials.decode().splitlines()
    assert len(rows) == 3
    assert [row.split(",")[:2] for row in rows[1:]] == [["1", "finished"], ["2", "finished"]]
    messages = told(service, name)
    for number in (1, 2):
        assert sum(f"Trial {number}/2: learning_rate" in message for message in messages) == 1
    assert sum("its checkpoints are the job's" in message for message in messages) == 1
    left = {path.name for path in (tmp_path / "data/tuning").glob("*/*/*")}
    assert not any(name.startswith("trial-") for name in left)
