import threading
from pathlib import Path

import pytest
from tuner_parts import TRAINING_FILE, Parts

from millrace_runtime import storage
from millrace_runtime.errors import Unavailable
from millrace_runtime.leases import LeaseLost
from millrace_runtime.work import JobFailure, JobStopped
from millrace_tuner.domain import Failure, JobState
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.steps import MAXIMUM_ATTEMPTS


def perform(parts: Parts) -> None:
    parts.attempt.perform(parts.claim(), threading.Event())


def test_the_job_is_told_all_it_needs(parts: Parts) -> None:
    parts.files.files["tenants/acme/files/file-valid"] = parts.files.files[TRAINING_FILE]
    job = parts.create(validation_file="tenants/acme/files/file-valid", seed=7)
    parts.job.outcome = JobStopped()
    perform(parts)
    spec = Spec.model_validate(parts.job.specs[0])
    base = parts.models.versions["demo"].checkpoint
    assert spec.base_version == "demo@7"
    assert spec.base_checkpoint_path == parts.content.directory(base.uri, base.digest)
    assert spec.base_checkpoint_digest == base.digest
    assert spec.model == job.tuned_model
    assert spec.training_file_path.read_text().startswith('{"messages"')
    assert spec.validation_file_sha256 == spec.training_file_sha256
    assert spec.method.kind == "supervised"
    assert spec.hyperparameters.epochs == 3
    assert spec.learning_rate == 2e-3
    assert spec.adapter.rank == 16
    assert spec.seed == 7


def test_a_trained_job_has_its_result_file_and_waits_for_its_rollout(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    assert job.state == JobState.RUNNING
    assert job.trained_time == parts.clock()
    assert job.trained_tokens == 20_000
    assert job.result_file == "tenants/acme/files/file-1"
    (content,) = parts.files.results.values()
    assert content.startswith(b"step,train_loss,")
    assert final.final
    assert final.valid_loss == 2.25
    directory = parts.content.directory(final.content.uri, final.content.digest)
    assert directory == parts.attempt.output_directory(job) / "checkpoint-00000020"
    subject, data = parts.facts()[-1]
    assert subject == "millrace.acme.tuner.checkpoint.finished"
    assert data["content"] == data["evaluation"]
    assert data["training_file_digest"] == job.plan.training_file.content.digest


def test_progress_is_written_down_and_told(parts: Parts) -> None:
    job = parts.create()
    metrics = {"train_loss": 2.5, "tokens_per_second": 900.0}
    parts.job.messages = [
        {"kind": "progress", "phase": "train", "completed": n, "total": 500, "metrics": metrics}
        for n in range(1, 13)
    ]
    parts.job.outcome = JobStopped()
    perform(parts)
    found = parts.app.get("acme", job.id)
    assert found.progress.phase == "train"
    assert found.progress.completed == 10  # 11 and 12 came within half a second, untold
    assert found.progress.metrics == metrics
    assert [m for m in parts.told(job.id) if m.startswith("Step")] == [
        "Step 1/500: training loss=2.50",
        "Step 5/500: training loss=2.50",
        "Step 10/500: training loss=2.50",
    ]


def test_a_stopped_job_is_taken_up_again_at_once(parts: Parts) -> None:
    job = parts.create()
    parts.job.outcome = JobStopped()
    perform(parts)
    assert parts.app.get("acme", job.id).state == JobState.RUNNING
    perform(parts)
    assert parts.fact_kinds() == ["job.started"]


def test_a_mistake_fails_the_job_with_its_reason(parts: Parts) -> None:
    job = parts.create()
    parts.job.outcome = JobFailure("INVALID_EXAMPLE", "training file, line 3: …")
    perform(parts)
    failed = parts.app.get("acme", job.id)
    assert failed.state == JobState.FAILED
    assert failed.failure == Failure("INVALID_EXAMPLE", "training file, line 3: …")
    assert parts.fact_kinds() == ["job.started", "job.failed"]


def test_crashes_in_a_row_are_ever_further_apart_and_then_a_failure(parts: Parts) -> None:
    job = parts.create()
    parts.job.outcome = JobFailure("CRASHED", "status -9")
    for wait_seconds in (5, 10, 20, 40):
        perform(parts)
        assert parts.app.get("acme", job.id).state == JobState.RUNNING
        parts.clock.advance(wait_seconds - 1)
        assert parts.store.claim() is None
        parts.clock.advance(2)
    perform(parts)
    assert parts.app.get("acme", job.id).state == JobState.FAILED
    assert len(parts.job.specs) == 5
    assert parts.told(job.id)[-1].startswith("The job failed: 5 tries in a row came no further")


@pytest.mark.parametrize("kind", ["state", "checkpoint"])
def test_a_job_that_gets_on_is_not_given_up(parts: Parts, kind: str) -> None:
    job = parts.create()
    parts.job.outcome = JobFailure("CRASHED", "status -9")
    for step in range(1, 8):
        checkpoint = parts.checkpoint_message(job, step, final=False)
        told = {"kind": "state", "step": step} if kind == "state" else checkpoint
        parts.job.messages = [told]
        perform(parts)
        parts.clock.advance(1000)
    assert parts.app.get("acme", job.id).state == JobState.RUNNING


def test_a_job_waits_for_the_disk_as_long_as_it_takes(parts: Parts) -> None:
    job = parts.create()
    parts.job.outcome = JobFailure("STORAGE_FULL", "the disk is full")
    for _ in range(MAXIMUM_ATTEMPTS + 2):
        perform(parts)
        waiting = parts.app.get("acme", job.id)
        assert waiting.state == JobState.RUNNING
        assert waiting.failure == Failure("STORAGE_FULL", "the disk is full")
        assert parts.store.claim() is None  # not before its time
        parts.clock.advance(storage.RETRY_WAIT.total_seconds() + 1)
    told = parts.told(job.id)
    assert told.count("Training waits (STORAGE_FULL): the disk is full") == 1
    parts.job.messages = [parts.checkpoint_message(job, 20)]
    parts.job.outcome = parts.result(job)
    perform(parts)
    done = parts.app.get("acme", job.id)
    assert done.trained_time is not None
    assert done.failure is None


def test_a_damaged_base_fails_the_job_before_it_runs(parts: Parts) -> None:
    job = parts.create()
    base = parts.models.versions["demo"].checkpoint
    directory = parts.content.directory(base.uri, base.digest)
    (directory / "weights").write_text("WEIGHTS")
    perform(parts)
    failure = parts.app.get("acme", job.id).failure
    assert failure is not None
    assert failure.reason == "CONTENT_DAMAGED"
    assert parts.job.specs == []


def test_a_training_file_that_is_gone_fails_the_job(parts: Parts) -> None:
    job = parts.create()
    content = job.plan.training_file.content
    parts.content.file(content.uri, content.digest).unlink()
    perform(parts)
    failure = parts.app.get("acme", job.id).failure
    assert failure is not None
    assert failure.reason == "CONTENT_DAMAGED"


def test_a_job_cancelled_while_it_runs_writes_no_more(parts: Parts) -> None:
    job = parts.create()
    lease = parts.claim()
    message = parts.checkpoint_message(job, 20)

    def cancel_then_report(*arguments: object) -> object:
        parts.app.cancel("acme", job.id)
        on_message = arguments[3]
        assert callable(on_message)
        on_message(message)
        raise AssertionError("the write was not refused")

    parts.attempt._run_job = cancel_then_report  # type: ignore[assignment]
    with pytest.raises(LeaseLost):
        parts.attempt.perform(lease, threading.Event())
    assert parts.app.get("acme", job.id).state == JobState.CANCELLED
    assert parts.fact_kinds() == ["job.started", "job.cancelled"]


def test_a_result_that_cannot_be_uploaded_is_uploaded_later(parts: Parts) -> None:
    parts.create()
    parts.files.is_away = True
    with pytest.raises(Unavailable):
        parts.train()
    parts.files.is_away = False
    job, _ = parts.train()
    assert job.result_file
    assert parts.fact_kinds() == ["job.started", "checkpoint.finished"]


def test_jobs_of_tenants_lie_apart(parts: Parts) -> None:
    job = parts.create()
    directory = parts.attempt.output_directory(job)
    assert directory == Path(parts.folder / "data/tuning/acme" / job.id).resolve()
