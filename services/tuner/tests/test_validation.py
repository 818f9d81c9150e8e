"""Validation of a job's files, by a worker of its own."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tuner_builders import conversations, write_base, write_jsonl
from tuner_parts import Parts

from millrace_runtime.leases import LeaseLost
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, run_job
from millrace_tuner.app import Wish
from millrace_tuner.domain import JobState, RequestKey


def unvalidated(parts: Parts) -> str:
    wish = Wish(base_model="demo", training_file="tenants/acme/files/file-train")
    return parts.app.create("acme", wish, RequestKey("", "sha256:0")).id


def test_a_job_is_trained_only_once_its_files_are_validated(parts: Parts) -> None:
    job = unvalidated(parts)
    assert parts.store.claim() is None
    parts.validate()
    assert parts.told(job)[-1] == "Files validated, moving job to queued state"
    assert parts.store.claim() is not None
    assert parts.rung >= 2  # by the job's making, and for the worker that trains


def test_a_bad_file_fails_the_job_before_it_waits_for_its_turn(parts: Parts) -> None:
    parts.validating.outcome = JobFailure("INVALID_EXAMPLE", "training file, line 4: no role")
    job = unvalidated(parts)
    parts.validate()
    failed = parts.app.get("acme", job)
    assert failed.state == JobState.FAILED
    assert failed.start_time is None
    assert failed.failure is not None and failed.failure.reason == "INVALID_EXAMPLE"
    assert parts.fact_kinds() == ["job.failed"]


def test_a_crash_of_validation_is_tried_again(parts: Parts) -> None:
    parts.validating.outcome = JobFailure("CRASHED", "killed by signal 9")
    job = unvalidated(parts)
    parts.validate()
    assert parts.app.get("acme", job).state == JobState.QUEUED
    assert parts.store.claim_unvalidated() is None  # it rests
    parts.clock.advance(6)
    parts.validating.outcome = JobResult({"training_examples": 1, "training_tokens": 2})
    parts.validate()
    assert parts.app.get("acme", job).validate_time is not None


def test_a_job_that_is_cancelled_amid_validation_stays_cancelled(parts: Parts) -> None:
    job = unvalidated(parts)
    lease = parts.store.claim_unvalidated()
    assert lease is not None
    parts.app.cancel("acme", job)
    with pytest.raises(LeaseLost):
        parts.validation.perform(lease, threading.Event())
    assert parts.app.get("acme", job).state == JobState.CANCELLED


def validate(folder: Path, examples: list[dict[str, Any]], **changes: Any) -> JobOutcome:
    spec = {
        "job": "ftjob-1",
        "model": "ft:demo:default::x",
        "base_version": "demo@7",
        "base_checkpoint_path": str(folder / "base"),
        "base_checkpoint_digest": write_base(folder / "base"),
        "training_file_path": str(folder / "train.jsonl"),
        "training_file_sha256": write_jsonl(folder / "train.jsonl", examples),
        "output_directory": str(folder / "out"),
        "hyperparameters": {"epochs": 1, "batch_size": 8, "learning_rate_multiplier": 1.0},
        "learning_rate": 1e-3,
        **changes,
    }
    module = "millrace_tuner.jobs.validate"
    return run_job(module, spec, folder / "job", lambda message: None, threading.Event())


def test_the_job_counts_what_the_training_job_will_see(tmp_path: Path) -> None:
    outcome = validate(tmp_path, conversations(12))
    assert isinstance(outcome, JobResult), outcome
    assert outcome.fields["training_examples"] == 12
    assert outcome.fields["training_tokens"] >= 12 * outcome.fields["longest_tokens"] * 0.5
    assert outcome.fields["truncated_examples"] == outcome.fields["skipped_examples"] == 0
