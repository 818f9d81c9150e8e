"""A dataset of examples as what a job learns from."""

import threading
from collections.abc import Iterator

import pytest
from neighbour_servers import Neighbours
from tuner_builders import conversations, write_jsonl
from tuner_parts import Parts

from millrace.data.v1 import service_pb2 as data
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace_examples.kinds import Conversation
from millrace_runtime import manifest
from millrace_runtime.channel import open_channel
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.work import JobStopped
from millrace_tuner.domain import Content, FileReference
from millrace_tuner.jobs import reading
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.neighbours import DataFiles

NAME = "tenants/acme/datasets/dataset-1"
DIGEST = "sha256:" + "a" * 64
EXAMPLES = data.DatasetSource(examples=data.ExampleSet(names=["tenants/acme/files/file-1"]))


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    running = Neighbours(token="secret")
    yield running
    running.stop()


@pytest.fixture
def files(neighbours: Neighbours) -> Iterator[DataFiles]:
    channel = open_channel(neighbours.address, "secret")
    yield DataFiles(channel)
    channel.close()


def dataset(
    source: data.DatasetSource = EXAMPLES,
    state: lifecycle.WorkState = lifecycle.WORK_STATE_SUCCEEDED,
) -> data.Dataset:
    content = lifecycle.Content(uri="file:///x", digest=DIGEST, size_bytes=9)
    return data.Dataset(
        name=NAME, source=source, state=state, content=content, documents={"kept_train": 200}
    )


def test_a_dataset_is_found(neighbours: Neighbours, files: DataFiles) -> None:
    neighbours.data.datasets[NAME] = dataset()
    found = files.training_file(NAME, "training_file")
    assert found == FileReference(NAME, Content("file:///x", DIGEST, 9), 200)
    assert found.is_dataset


@pytest.mark.parametrize(
    ("found", "reason", "says"),
    [
        (None, "FILE_NOT_FOUND", "there is no dataset dataset-1"),
        (
            dataset(data.DatasetSource(python_standard_library=data.PythonStandardLibrary())),
            "FILE_PURPOSE",
            "holds tokens",
        ),
        (
            dataset(state=lifecycle.WORK_STATE_RUNNING),
            "DATASET_NOT_READY",
            "dataset-1 is running; tune on it once it has succeeded",
        ),
    ],
)
def test_a_dataset_that_cannot_be_learned_from_names_the_field(
    neighbours: Neighbours,
    files: DataFiles,
    found: data.Dataset | None,
    reason: str,
    says: str,
) -> None:
    if found is not None:
        neighbours.data.datasets[NAME] = found
    with pytest.raises(InvalidArgument, match=says) as caught:
        files.training_file(NAME, "validation_file")
    assert caught.value.reason == reason
    assert caught.value.field == "validation_file"


def test_the_job_reads_the_examples_of_the_dataset(parts: Parts) -> None:
    target = parts.content.working_path("datasets/dataset-1")
    temporary = manifest.temporary_sibling(target)
    sha256 = write_jsonl(temporary / "train.jsonl", conversations(20))
    digest = manifest.commit(temporary, target, "examples", {})
    content = Content(parts.content.publish(target), digest, 1)
    parts.files.files[NAME] = FileReference(NAME, content, 20)
    job = parts.create(training_file=NAME, validation_file=NAME)
    assert job.plan.training_file.content.digest == digest
    parts.job.outcome = JobStopped()
    parts.attempt.perform(parts.claim(), threading.Event())
    spec = Spec.model_validate(parts.job.specs[0])
    assert spec.training_file_sha256 == spec.validation_file_sha256 == sha256
    training, validation = reading.files(spec, Conversation)
    assert len(training) == 20
    assert validation == training


def test_a_dataset_without_examples_fails_the_job(parts: Parts) -> None:
    target = parts.content.working_path("datasets/dataset-1")
    temporary = manifest.temporary_sibling(target)
    (temporary / "other").write_text("x")
    digest = manifest.commit(temporary, target, "examples", {})
    content = Content(parts.content.publish(target), digest, 1)
    parts.files.files[NAME] = FileReference(NAME, content, 20)
    job = parts.create(training_file=NAME)
    failure = parts.app.get("acme", job.id).failure
    assert failure is not None
    assert failure.reason == "CONTENT_DAMAGED"
