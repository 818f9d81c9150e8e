"""One attempt at a job: the subprocess that trains, and what is written down of what it says."""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Gauge, Histogram

from millrace_runtime import manifest, names, storage, telemetry, work
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.leases import Lease
from millrace_runtime.work import JobFailure, JobOutcome, JobResult
from millrace_tuner import result_file, steps, trials
from millrace_tuner.app import Files
from millrace_tuner.domain import (
    Change,
    Checkpoint,
    Content,
    Failure,
    Job,
    JobState,
    Progress,
    Step,
    utc_now,
)
from millrace_tuner.findings import findings
from millrace_tuner.job_specification import module_of, specification

_FOLDER = "tuning"
_PROGRESS_SECONDS = 0.5

_SECONDS = Histogram(
    "millrace_tuning_attempt_duration_seconds",
    "Time from an attempt's start to its end.",
    ["outcome"],
    buckets=(5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240),
)
_LATENCY_SECONDS = Histogram(
    "millrace_tuning_start_latency_seconds", "Time from CreateJob to its first attempt."
)
_TOKENS_PER_SECOND = Gauge(
    "millrace_tuning_tokens_per_second", "Training speed, as a job last reported it."
)

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]


class Training(Protocol):
    """Fenced writes to the rows of jobs (``store.JobStore``)."""

    def change_leased(self, lease: Lease, step: Step) -> Job: ...
    def add_checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Checkpoint: ...
    def put_off(self, lease: Lease, wait: timedelta) -> None: ...
    def let_go(self, lease: Lease) -> None: ...


class Attempt:
    """``perform`` is what a worker does for each job that it claims."""

    def __init__(
        self,
        jobs: Training,
        files: Files,
        content: ContentStore,
        *,
        scratch: Path,
        threads: int,
        mlflow_tracking_uri: str | None,
        ring: Callable[[], None],
        run_job: RunJob = work.run_job,
        back_off_seconds: float = 5.0,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``back_off_seconds`` are waited after a crash, twice as many after the next one."""
        self._jobs = jobs
        self._files = files
        self._content = content
        self._scratch = scratch
        self._threads = threads
        self._mlflow_tracking_uri = mlflow_tracking_uri
        self._ring = ring
        self._run_job = run_job
        self._back_off = timedelta(seconds=back_off_seconds)
        self._now = now

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Train the job of ``lease``, from its last state on.

        Raises:
            LeaseLost: it was taken over, cancelled or paused meanwhile.
        """
        try:
            job = self._jobs.change_leased(lease, self._start)
            self._ring()
            attributes: dict[str, str | int | float | bool] = {
                "millrace.job": job.name,
                "millrace.epoch": lease.epoch,
            }
            with telemetry.span("tuner train", traceparent=job.traceparent, attributes=attributes):
                self._train(lease, job, stop)
        finally:
            self._jobs.let_go(lease)

    def _start(self, job: Job) -> Change:
        now = self._now()
        if job.state == JobState.QUEUED and job.start_time is None:
            _LATENCY_SECONDS.observe((now - job.create_time).total_seconds())
        return steps.start(job, now)

    def _train(self, lease: Lease, job: Job, stop: threading.Event) -> None:
        started = time.monotonic()
        outcome = self._run(lease, job, stop)
        _SECONDS.labels(type(outcome).__name__).observe(time.monotonic() - started)
        if isinstance(outcome, JobResult):
            self._end_training(lease, job, outcome.fields)
        elif isinstance(outcome, JobFailure):
            self._fail(lease, Failure(outcome.reason, outcome.message))
        self._ring()

    def _fail(self, lease: Lease, failure: Failure) -> None:
        if failure.reason in storage.REASONS:
            self._jobs.change_leased(lease, lambda job: steps.hinder(job, failure, self._now()))
            self._jobs.put_off(lease, storage.RETRY_WAIT)
            return
        job = self._jobs.change_leased(
            lease, lambda job: steps.fail_attempt(job, failure, self._now())
        )
        if job.is_training:
            self._jobs.put_off(lease, steps.back_off(job.attempts, self._back_off))

    def _run(self, lease: Lease, job: Job, stop: threading.Event) -> JobOutcome:
        try:
            spec = specification(
                job,
                self._content,
                self.output_directory(job),
                threads=self._threads,
                mlflow_tracking_uri=self._mlflow_tracking_uri,
            )
        except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)
        hearing = Hearing(self, lease, job)
        module = module_of(job.plan)
        return self._run_job(module, spec, self._scratch / job.id, hearing.hear, stop)

    def output_directory(self, job: Job) -> Path:
        return self._content.working_path(f"{_FOLDER}/{job.tenant}/{job.id}")

    def record_checkpoint(self, lease: Lease, job: Job, message: dict[str, Any]) -> None:
        """Publish what the job has committed, then write it down with its fact."""
        uri = self._content.publish(Path(message["path"]))
        checkpoint = Checkpoint(
            tenant=job.tenant,
            job=job.id,
            id=names.new_id("ckpt"),
            model=job.tuned_model,
            step=message["step"],
            train_loss=message["train_loss"],
            valid_loss=message["valid_loss"],
            metrics=message["metrics"],
            trained_tokens=message["trained_tokens"],
            final=message["final"],
            content=Content(uri, message["digest"], message["size_bytes"]),
            base_checkpoint_digest=job.plan.base.checkpoint.digest,
            training_file_digest=job.plan.training_file.content.digest,
            create_time=self._now(),
        )
        self._jobs.add_checkpoint(lease, checkpoint)
        self._ring()

    def record_progress(self, lease: Lease, made: Progress) -> None:
        _TOKENS_PER_SECOND.set(made.metrics.get("tokens_per_second", 0.0))
        self._jobs.change_leased(lease, lambda job: steps.progress(job, made, self._now()))

    def record_state(self, lease: Lease) -> None:
        """The job has committed a state to go on from."""
        self._jobs.change_leased(lease, lambda job: steps.keep(job, self._now()))

    def record_trial(self, lease: Lease, message: dict[str, Any]) -> None:
        """A trial of a sweep has ended, or become the job's result."""
        event = trials.event(message)
        self._jobs.change_leased(lease, lambda job: Change(job, (), (event,)))

    def _end_training(self, lease: Lease, job: Job, result: dict[str, Any]) -> None:
        metrics = Path(result["metrics_path"]).read_text(encoding="utf-8")
        content = result_file.to_csv(metrics.splitlines())
        name = self._files.add_results(job.tenant, f"{job.id}-metrics.csv", content)
        tried = self._add_trials(job, result)
        tokens = int(result["trained_tokens"])
        self._jobs.change_leased(
            lease,
            lambda job: steps.end_training(job, tokens, name, self._now(), tried, findings(result)),
        )

    def _add_trials(self, job: Job, result: dict[str, Any]) -> str:
        """The name of the file with the trials; empty where there was no sweep."""
        if job.plan.sweep is None:
            return ""
        content = trials.to_csv(result["trials"])
        return self._files.add_results(job.tenant, f"{job.id}-trials.csv", content)


class Hearing:
    """Hears one job out. Progress is written down twice a second, and wherever it is told."""

    def __init__(self, attempt: Attempt, lease: Lease, job: Job) -> None:
        self._attempt = attempt
        self._lease = lease
        self._job = job
        self._last_progress_seconds = float("-inf")

    def hear(self, message: dict[str, Any]) -> None:
        """One line of the job (``millrace_runtime.jobs``)."""
        if message["kind"] == "checkpoint":
            self._attempt.record_checkpoint(self._lease, self._job, message)
        elif message["kind"] == "state":
            self._attempt.record_state(self._lease)
        elif message["kind"] == "trial":
            self._attempt.record_trial(self._lease, message)
        elif message["kind"] == "progress" and self._is_due(message):
            self._last_progress_seconds = time.monotonic()
            made = Progress(
                message["phase"], message["completed"], message["total"], message["metrics"]
            )
            self._attempt.record_progress(self._lease, made)

    def _is_due(self, message: dict[str, Any]) -> bool:
        since = time.monotonic() - self._last_progress_seconds
        told = message["phase"] == steps.TRAIN_PHASE and steps.is_told(
            message["completed"], message["total"]
        )
        return told or since >= _PROGRESS_SECONDS
