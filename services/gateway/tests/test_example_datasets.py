"""Datasets of examples: made of uploaded files, and tuned on by their ids."""

import openai
import pytest
from gateway_mesh import Mesh

LINES = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n' * 10


def test_a_dataset_of_examples_is_made_of_files(mesh: Mesh) -> None:
    body = {"source": {"type": "examples", "files": ["file-1", "file-2"]}}
    answer = mesh.http().post("/v1/datasets", json=body)
    assert answer.status_code == 200, answer.text
    made = mesh.http().get(f"/v1/datasets/{answer.json()['id']}").json()
    assert made["source"] == body["source"]
    (asked,) = mesh.data.datasets.rows.values()
    assert asked.source.WhichOneof("source") == "examples"


@pytest.mark.parametrize("files", [None, [], ["file-1", "file-1"]])
def test_it_needs_distinct_files(mesh: Mesh, files: list[str] | None) -> None:
    body = {"source": {"type": "examples", "files": files}}
    answer = mesh.http().post("/v1/datasets", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "source.files"


def test_a_job_learns_from_a_dataset_by_its_id(mesh: Mesh) -> None:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:  # of the tuner, which knows no such one
        client.fine_tuning.jobs.create(model="demo", training_file="dataset-1")
    assert caught.value.param == "training_file"
    job = client.fine_tuning.jobs.create(
        model="demo", training_file=file.id, validation_file="dataset-1"
    )
    asked = mesh.tuner.jobs.rows[f"tenants/default/jobs/{job.id}"]
    assert asked.validation_file == "tenants/default/datasets/dataset-1"
    assert client.fine_tuning.jobs.retrieve(job.id).validation_file == "dataset-1"
