import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_builders import DIGEST, LEASE_SECONDS, Parts, prose, write_text_jsonl

from millrace_data.dataset_build import (
    JOB_MODULE,
    REMAINS_GRACE,
    BuildCrashed,
    DatasetBuilder,
    dataset_id_of,
)
from millrace_data.domain import (
    MAXIMUM_ATTEMPTS,
    Dataset,
    Failure,
    FileSet,
    Progress,
    Recipe,
    RequestKey,
    WorkState,
)
from millrace_runtime import manifest, storage, telemetry, work
from millrace_runtime.leases import LeaseLost
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class FakeJob:
    """Runs in place of the subprocess: says its lines, and ends as it is told."""

    def __init__(self, outcome: JobOutcome | None = None) -> None:
        self.outcome = outcome
        self.specs: list[dict[str, Any]] = []
        self.traceparents: list[str] = []
        self.before_end: Callable[[], None] = lambda: None

    def __call__(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        assert module == JOB_MODULE
        self.specs.append(spec)
        self.traceparents.append(telemetry.current_traceparent())
        progress = {"phase": "read", "completed": 1, "total": 2, "metrics": {"seconds": 0.5}}
        on_message({"kind": "progress", **progress})
        self.before_end()
        return self.outcome or JobResult(result_of(spec))


def result_of(spec: dict[str, Any]) -> dict[str, Any]:
    documents = {
        "read": 20,
        "exact_duplicates": 1,
        "near_duplicates": 2,
        "filtered": {"too_small": 3, "data_table": 4},
        "kept_train": 9,
        "kept_heldout": 1,
        "reached_maximum_bytes": False,
    }
    metadata = {
        "documents": documents,
        "tokenizer_digest": DIGEST,
        "train_tokens": 900,
        "heldout_tokens": 90,
    }
    path = spec["output_path"]
    return {"path": path, "digest": DIGEST, "size_bytes": 1000, "metadata": metadata}


def builder_of(parts: Parts, tmp_path: Path, job: work.run_job) -> DatasetBuilder:  # type: ignore[valid-type]
    return DatasetBuilder(
        parts.dataset_store,
        parts.file_store,
        parts.stored,
        parts.content,
        scratch=tmp_path / "scratch",
        threads=1,
        ring=lambda: parts.rings.append("relay"),
        run_job=job,
        now=parts.clock,
    )


def perform(parts: Parts, builder: DatasetBuilder) -> None:
    lease = parts.dataset_store.claim()
    assert lease is not None
    builder.perform(lease, threading.Event())


def now(parts: Parts, dataset: Dataset) -> Dataset:
    found = parts.dataset_store.get(dataset.tenant, dataset.id)
    assert found is not None
    return found


def test_a_build_that_succeeds_is_a_fact(parts: Parts, tmp_path: Path) -> None:
    job = FakeJob()
    dataset = parts.create()
    perform(parts, builder_of(parts, tmp_path, job))
    done = now(parts, dataset)
    assert done.state is WorkState.SUCCEEDED
    assert done.progress == Progress("read", 1, 2, {"seconds": 0.5})
    assert done.built is not None
    assert done.built.documents["filtered"] == 7
    assert sum(v for k, v in done.built.documents.items() if k != "read") == 20
    ((subject, _, data),) = parts.facts()
    assert subject == "millrace.acme.data.dataset.ready"
    assert data["dataset"] == dataset.name
    assert data["content"] == {
        "uri": (parts.root / "datasets" / dataset.id).as_uri(),
        "digest": DIGEST,
        "size_bytes": "1000",
    }
    assert parts.rings == ["builder", "relay"]


def test_the_job_gets_the_recipe_and_verified_files(parts: Parts, tmp_path: Path) -> None:
    job = FakeJob()
    file = parts.upload(b"text", filename="mine.txt")
    recipe = Recipe(vocabulary_size=500, maximum_bytes=0, seed=7)
    parts.datasets.create("acme", "", FileSet((file.id,)), recipe, RequestKey())
    perform(parts, builder_of(parts, tmp_path, job))
    (spec,) = job.specs
    (source,) = spec["source"]["files"]
    assert Path(source["path"]).read_bytes() == b"text"
    assert source["name"] == "mine.txt"
    assert spec["recipe"]["vocabulary_size"] == 500
    assert spec["recipe"]["maximum_bytes"] is None
    assert spec["recipe"]["seed"] == 7


def test_the_build_and_its_fact_stay_in_the_requests_trace(parts: Parts, tmp_path: Path) -> None:
    telemetry.start_tracing("test")
    with telemetry.span("create", traceparent=TRACEPARENT):
        parts.create()
    job = FakeJob()
    perform(parts, builder_of(parts, tmp_path, job))
    traces = {job.traceparents[0].split("-")[1], parts.facts()[0][1].split("-")[1]}
    assert traces == {TRACEPARENT.split("-")[1]}


def test_a_users_mistake_fails_at_once(parts: Parts, tmp_path: Path) -> None:
    job = FakeJob(JobFailure("DATASET_TOO_SMALL", "one document"))
    dataset = parts.create()
    perform(parts, builder_of(parts, tmp_path, job))
    failed = now(parts, dataset)
    assert failed.state is WorkState.FAILED
    assert failed.failure is not None
    assert failed.failure.reason == "DATASET_TOO_SMALL"
    ((subject, _, data),) = parts.facts()
    assert subject == "millrace.acme.data.dataset.failed"
    assert data["failure"] == {"reason": "DATASET_TOO_SMALL", "message": "one document"}


def test_a_crash_is_tried_again_three_times(parts: Parts, tmp_path: Path) -> None:
    builder = builder_of(parts, tmp_path, FakeJob(JobFailure("CRASHED", "signal 9")))
    dataset = parts.create()
    for _ in range(2):
        with pytest.raises(BuildCrashed):
            perform(parts, builder)
        assert now(parts, dataset).state is WorkState.RUNNING
        assert parts.dataset_store.claim() is None
        parts.clock.advance(LEASE_SECONDS + 1)
    perform(parts, builder)
    assert now(parts, dataset).state is WorkState.FAILED
    assert len(parts.facts()) == 1


def test_a_crash_and_then_success(parts: Parts, tmp_path: Path) -> None:
    dataset = parts.create()
    with pytest.raises(BuildCrashed):
        perform(parts, builder_of(parts, tmp_path, FakeJob(JobFailure("INTERNAL", "x"))))
    parts.clock.advance(LEASE_SECONDS + 1)
    perform(parts, builder_of(parts, tmp_path, FakeJob()))
    assert now(parts, dataset).state is WorkState.SUCCEEDED


@pytest.mark.parametrize("reason", ["STORAGE_FULL", "STORAGE_ERROR"])
def test_a_build_waits_for_the_disk_as_long_as_it_takes(
    parts: Parts, tmp_path: Path, reason: str
) -> None:
    job = FakeJob(JobFailure(reason, "the disk is full"))
    dataset = parts.create()
    for _ in range(MAXIMUM_ATTEMPTS + 2):
        perform(parts, builder_of(parts, tmp_path, job))
        waiting = now(parts, dataset)
        assert waiting.state is WorkState.RUNNING
        assert waiting.failure == Failure(reason, "the disk is full")
        assert parts.dataset_store.claim() is None  # not before its time
        parts.clock.advance(storage.RETRY_WAIT.total_seconds() + 1)
    assert parts.facts() == []
    job.outcome = None
    perform(parts, builder_of(parts, tmp_path, job))
    done = now(parts, dataset)
    assert (done.state, done.failure) == (WorkState.SUCCEEDED, None)


def test_a_build_stopped_by_draining_is_no_attempt(parts: Parts, tmp_path: Path) -> None:
    dataset = parts.create()
    perform(parts, builder_of(parts, tmp_path, FakeJob(JobStopped())))
    stopped = now(parts, dataset)
    assert stopped.state is WorkState.RUNNING
    assert stopped.attempts == 0
    assert parts.facts() == []


def test_a_build_that_was_cancelled_meanwhile_changes_nothing(parts: Parts, tmp_path: Path) -> None:
    job = FakeJob()
    dataset = parts.create()
    job.before_end = lambda: (parts.datasets.cancel("acme", dataset.id), None)[1]
    with pytest.raises(LeaseLost):
        perform(parts, builder_of(parts, tmp_path, job))
    assert now(parts, dataset).state is WorkState.CANCELLED
    assert [subject for subject, _, _ in parts.facts()] == ["millrace.acme.data.dataset.failed"]


def test_a_file_deleted_before_the_build_fails_it(parts: Parts, tmp_path: Path) -> None:
    file = parts.upload()
    dataset = parts.create(source=FileSet((file.id,)))
    parts.files.delete("acme", file.id)
    perform(parts, builder_of(parts, tmp_path, FakeJob()))
    failure = now(parts, dataset).failure
    assert failure is not None
    assert failure.reason == "FILE_NOT_FOUND"
    assert file.id in failure.message


def test_a_damaged_file_fails_the_build(parts: Parts, tmp_path: Path) -> None:
    file = parts.upload()
    dataset = parts.create(source=FileSet((file.id,)))
    (parts.root / "files" / parts.stored_files()[0]).write_bytes(b"?")
    perform(parts, builder_of(parts, tmp_path, FakeJob()))
    failure = now(parts, dataset).failure
    assert failure is not None
    assert failure.reason == "CONTENT_DAMAGED"


def test_the_real_job_builds_what_is_verified(parts: Parts, tmp_path: Path) -> None:
    path = write_text_jsonl(tmp_path / "texts.jsonl", [prose(seed) for seed in range(80)])
    file = parts.upload(path.read_bytes(), filename="texts.jsonl")
    recipe = Recipe(vocabulary_size=400, heldout_fraction=0.1)
    dataset = parts.datasets.create("acme", "", FileSet((file.id,)), recipe, RequestKey())
    perform(parts, builder_of(parts, tmp_path, work.run_job))
    done = now(parts, dataset)
    assert done.state is WorkState.SUCCEEDED, done.failure
    assert done.built is not None
    folder = parts.content.directory(done.built.content.uri, done.built.content.digest)
    found = manifest.verify(folder, done.built.content.digest)
    assert found.metadata["train_tokens"] == done.built.train_tokens > 0
    assert done.built.documents["read"] == 80


def test_the_real_jobs_own_words_reach_the_user(parts: Parts, tmp_path: Path) -> None:
    file = parts.upload(b'{"text": "a"}\n{"text": 1}\n', filename="texts.jsonl")
    dataset = parts.create(source=FileSet((file.id,)))
    perform(parts, builder_of(parts, tmp_path, work.run_job))
    failure = now(parts, dataset).failure
    assert failure is not None
    assert failure.reason == "INVALID_FILE"
    assert failure.message.startswith("texts.jsonl: line 2:")


def test_the_reconciler_removes_what_cancelled_builds_left(parts: Parts, tmp_path: Path) -> None:
    builder = builder_of(parts, tmp_path, FakeJob())
    cancelled, running = parts.create(), parts.create()
    folders = [
        parts.content.working_path(f"datasets/{name}")
        for name in (cancelled.id, f".tmp-{cancelled.id}-0123", running.id, "stranger")
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    parts.datasets.cancel("acme", cancelled.id)
    builder.reconcile()
    assert all(folder.exists() for folder in folders)
    parts.clock.advance(REMAINS_GRACE.total_seconds() + 1)
    builder.reconcile()
    assert [folder.exists() for folder in folders] == [False, False, True, True]


@pytest.mark.parametrize("name", ["dataset-01ab", ".tmp-dataset-01ab-0f3c"])
def test_whose_folder_it_is(name: str) -> None:
    assert dataset_id_of(name) == "dataset-01ab"
