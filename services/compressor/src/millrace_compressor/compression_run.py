"""The worker's part: one compression, in a subprocess, judged by the gate."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Histogram

from millrace_compressor import gate, recovery
from millrace_compressor.domain import (
    MAXIMUM_ATTEMPTS,
    RETRIED_REASONS,
    Compression,
    Content,
    Failure,
    Measurements,
    Progress,
    State,
    Verdict,
    utc_now,
)
from millrace_compressor.recovery import Recovery, Student
from millrace_compressor.rows import measurements_of
from millrace_runtime import storage, telemetry, work
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.errors import Unavailable
from millrace_runtime.leases import Lease
from millrace_runtime.manifest import ManifestError
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped

JOB_MODULE = "millrace_compressor.jobs.compress"
PRUNE_MODULE = "millrace_compressor.jobs.prune"
RECOVERY_WAIT = timedelta(seconds=3)
"""Between two looks at a tuning job."""
STUDENT = "student"
_PRUNING = (
    "compression_id",
    "checkpoint_path",
    "checkpoint_digest",
    "evaluation_path",
    "evaluation_digest",
    "recipe",
    "working_directory",
    "threads",
)
"""What the job that prunes is told, of what the other is."""

_SECONDS = Histogram(
    "millrace_compression_duration_seconds",
    "Time from a compression's start to its end.",
    ["outcome"],
    buckets=(2, 5, 10, 15, 20, 30, 60, 120, 300, 600),
)
_LATENCY_SECONDS = Histogram(
    "millrace_compression_start_latency_seconds",
    "Time from checkpoint.finished to the start of its compression.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300),
)

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]
Run = Callable[[str, dict[str, Any]], JobOutcome]
"""Runs the job of a module, for the compression that is under way."""


class CompressionCrashed(Exception):
    """A try ended in a way that is nobody's mistake; its lease runs out, and it is tried again."""


class TaskMissing(Exception):
    """The file of a task is not there any more, or not what it was."""


class Runs(Protocol):
    """Fenced writes to the rows of compressions (``store.CompressionStore``)."""

    def start(self, lease: Lease) -> Compression: ...
    def record_progress(self, lease: Lease, progress: Progress) -> None: ...
    def count_attempt(self, lease: Lease) -> int: ...
    def put_off(self, lease: Lease, failure: Failure, wait: timedelta) -> None: ...
    def wait(self, lease: Lease, progress: Progress, wait: timedelta) -> None: ...
    def succeed(
        self, lease: Lease, artifact: Content, measurements: Measurements, verdict: Verdict
    ) -> Compression: ...
    def fail(self, lease: Lease, failure: Failure) -> Compression: ...


class Recoveries(Protocol):
    """Tuning jobs that recover what was pruned (``recovery.TunerRecoveries``)."""

    def find(self, compression: Compression) -> Recovery | None: ...
    def start(self, compression: Compression, student: Student) -> Recovery: ...


class CompressionRunner:
    """``perform`` is what the worker does for each compression that it claims."""

    def __init__(
        self,
        compressions: Runs,
        content: ContentStore,
        *,
        scratch: Path,
        threads: int,
        evaluation_tokens: int,
        ring: Callable[[], None],
        llm_compressor_python: Path | None = None,
        recoveries: Recoveries | None = None,
        recovery_tokens: int = 1_000_000,
        run_job: RunJob = work.run_job,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._compressions = compressions
        self._content = content
        self._scratch = scratch
        self._threads = threads
        self._evaluation_tokens = evaluation_tokens
        self._llm_compressor_python = llm_compressor_python
        self._ring = ring
        self._recoveries = recoveries
        self._recovery_tokens = recovery_tokens
        self._run_job = run_job
        self._now = now

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Compress, measure and judge.

        Raises:
            LeaseLost: it was taken over or cancelled meanwhile.
            CompressionCrashed: it is to be tried again.
        """
        compression = self._compressions.start(lease)
        assert compression.state == State.RUNNING
        if compression.progress.phase != recovery.PHASE:  # it has started long ago
            self._observe_latency(compression)
        started = self._now()
        attributes: dict[str, str | int | float | bool] = {
            "millrace.compression": compression.name,
            "millrace.checkpoint": compression.order.checkpoint.name,
            "millrace.target": compression.order.target.value,
            "millrace.epoch": lease.epoch,
        }
        with telemetry.span(
            "compressor compress", traceparent=compression.traceparent, attributes=attributes
        ):
            outcome = self._compress(lease, compression, stop)
            seconds = (self._now() - started).total_seconds()
            _SECONDS.labels(type(outcome).__name__).observe(seconds)
            if isinstance(outcome, JobResult):
                self._succeed(lease, compression, outcome.fields)
            elif isinstance(outcome, JobFailure):
                self._fail(lease, Failure(outcome.reason, outcome.message))

    def _observe_latency(self, compression: Compression) -> None:
        requested, started = compression.order.requested_time, compression.start_time
        if requested is not None and started is not None:
            _LATENCY_SECONDS.observe((started - requested).total_seconds())

    def _compress(
        self, lease: Lease, compression: Compression, stop: threading.Event
    ) -> JobOutcome:
        def on_message(message: dict[str, Any]) -> None:
            if message["kind"] == "progress":
                self._compressions.record_progress(lease, progress_of(message))

        try:
            spec = self._spec(compression) | self._task(compression)
        except TaskMissing as error:
            return JobFailure("TASK_DATA_MISSING", str(error))
        except (ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)

        def run(module: str, spec: dict[str, Any]) -> JobOutcome:
            return self._run_job(module, spec, self._scratch / compression.id, on_message, stop)

        if recovery.is_wanted(compression.order):
            found = self._recovered(lease, compression, spec, run)
            if not isinstance(found, dict):
                return found
            spec |= found
        return run(JOB_MODULE, spec)

    def _recovered(
        self, lease: Lease, compression: Compression, spec: dict[str, Any], run: Run
    ) -> dict[str, Any] | JobOutcome:
        """What a tuning job has made of the student, for ``spec``; or why it is not there yet."""
        if self._recoveries is None:
            return JobFailure("RECOVERY_UNAVAILABLE", "this compressor knows no tuner")
        try:
            found = self._recoveries.find(compression)
            if found is None:
                made = run(PRUNE_MODULE, self._prune_spec(spec))
                if not isinstance(made, JobResult):
                    return made
                found = self._recoveries.start(compression, self._student(made.fields))
        except Unavailable as error:
            failure = Failure("TUNER_UNAVAILABLE", f"the tuner does not answer: {error}")
            self._compressions.put_off(lease, failure, RECOVERY_WAIT)
            return JobStopped()
        if found.failure is not None:
            return JobFailure(found.failure.reason, found.failure.message)
        if found.checkpoint is None:
            self._compressions.wait(lease, found.progress, RECOVERY_WAIT)
            return JobStopped()
        try:
            path = self._content.directory(found.checkpoint.uri, found.checkpoint.digest)
        except (ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)
        return {
            "recovered_path": str(path),
            "recovered_digest": found.checkpoint.digest,
            "recovery_job": found.job,
        }

    def _spec(self, compression: Compression) -> dict[str, Any]:
        checkpoint = compression.order.checkpoint
        content, evaluation = checkpoint.content, checkpoint.evaluation
        return {
            "compression_id": compression.id,
            "checkpoint_path": str(self._content.directory(content.uri, content.digest)),
            "checkpoint_digest": content.digest,
            "evaluation_path": str(self._content.directory(evaluation.uri, evaluation.digest)),
            "evaluation_digest": evaluation.digest,
            "target": compression.order.target.value,
            "recipe": dict(compression.order.recipe),
            "gate": asdict(compression.order.gate),
            "artifact_path": str(self._content.working_path(f"artifacts/{compression.id}")),
            # On the artifact's own filesystem: it is committed by a rename.
            "working_directory": str(self._content.working_path(_working(compression))),
            "originals_directory": str(self._content.working_path("originals")),
            "graphs_directory": str(self._content.working_path("graphs")),
            "threads": self._threads,
            "evaluation_tokens": self._evaluation_tokens,
            "llm_compressor_python": _absolute(self._llm_compressor_python),
        }

    def _task(self, compression: Compression) -> dict[str, Any]:
        """The task for a specification, where one is named.

        Raises:
            TaskMissing
            ContentOutsideRoot, OSError: its file cannot be read.
        """
        if not compression.order.task:
            return {}
        told = dict(compression.order.task)
        content = told.pop("content")
        try:
            path = self._content.file(content["uri"], content["digest"])
        except (ManifestError, FileNotFoundError) as error:
            raise TaskMissing(
                f"{told['file'].rpartition('/')[2]}, by which the artifact was to be measured, is "
                f"not what it was ({error}); upload it again, and name it as the deployment's task"
            ) from error
        return {"task": {**told, "path": str(path), "digest": content["digest"]}}

    def _prune_spec(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        taken = {name: spec[name] for name in _PRUNING}
        return {
            **taken,
            "student_path": str(Path(spec["working_directory"]) / STUDENT),
            "recovery_tokens": self._recovery_tokens,
        }

    def _student(self, made: Mapping[str, Any]) -> Student:
        uri = self._content.publish(Path(made["student_path"]))
        content = Content(uri, made["student_digest"], made["size_bytes"])
        return Student(content, made["windows"])

    def _succeed(self, lease: Lease, compression: Compression, result: Mapping[str, Any]) -> None:
        uri = self._content.publish(Path(result["artifact_path"]))
        artifact = Content(uri, result["artifact_digest"], result["size_bytes"])
        measurements = measurements_of(result["measurements"])
        verdict = gate.decide(measurements, compression.order.gate)
        self._compressions.succeed(lease, artifact, measurements, verdict)
        if recovery.is_wanted(compression.order):
            self._content.remove(_student_of(compression))
        self._ring()

    def _fail(self, lease: Lease, failure: Failure) -> None:
        if failure.reason in storage.REASONS:
            self._compressions.put_off(lease, failure, storage.RETRY_WAIT)
            return
        attempts = self._compressions.count_attempt(lease)
        if failure.reason in RETRIED_REASONS and attempts < MAXIMUM_ATTEMPTS:
            raise CompressionCrashed(f"{lease.id}: {failure.reason}: {failure.message}")
        self._compressions.fail(lease, failure)
        self._ring()


def _working(compression: Compression) -> str:
    return f"artifacts/.work-{compression.id}"


def _student_of(compression: Compression) -> str:
    """Where a student lies in the store until the artifact is made of what it has learned."""
    return f"{_working(compression)}/{STUDENT}"


def _absolute(path: Path | None) -> str | None:
    """As the service sees it: a job runs in another directory. Links stay, as environments' are."""
    return None if path is None else str(path.absolute())


def progress_of(message: Mapping[str, Any]) -> Progress:
    """A job's ``progress`` line."""
    return Progress(message["phase"], message["completed"], message["total"], message["metrics"])
