"""The worker's part: one compression, in a subprocess, judged by the gate."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Histogram

from millrace_compressor import gate
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
from millrace_compressor.rows import measurements_of
from millrace_runtime import storage, telemetry, work
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.leases import Lease
from millrace_runtime.manifest import ManifestError
from millrace_runtime.work import JobFailure, JobOutcome, JobResult

JOB_MODULE = "millrace_compressor.jobs.compress"

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


class CompressionCrashed(Exception):
    """A try ended in a way that is nobody's mistake; its lease runs out, and it is tried again."""


class Runs(Protocol):
    """Fenced writes to the rows of compressions (``store.CompressionStore``)."""

    def start(self, lease: Lease) -> Compression: ...
    def record_progress(self, lease: Lease, progress: Progress) -> None: ...
    def count_attempt(self, lease: Lease) -> int: ...
    def put_off(self, lease: Lease, failure: Failure, wait: timedelta) -> None: ...
    def succeed(
        self, lease: Lease, artifact: Content, measurements: Measurements, verdict: Verdict
    ) -> Compression: ...
    def fail(self, lease: Lease, failure: Failure) -> Compression: ...


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
        run_job: RunJob = work.run_job,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._compressions = compressions
        self._content = content
        self._scratch = scratch
        self._threads = threads
        self._evaluation_tokens = evaluation_tokens
        self._ring = ring
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
            spec = self._spec(compression)
        except (ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)
        return self._run_job(JOB_MODULE, spec, self._scratch / compression.id, on_message, stop)

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
            "working_directory": str(
                self._content.working_path(f"artifacts/.work-{compression.id}")
            ),
            "threads": self._threads,
            "evaluation_tokens": self._evaluation_tokens,
        }

    def _succeed(self, lease: Lease, compression: Compression, result: Mapping[str, Any]) -> None:
        uri = self._content.publish(Path(result["artifact_path"]))
        artifact = Content(uri, result["artifact_digest"], result["size_bytes"])
        measurements = measurements_of(result["measurements"])
        verdict = gate.decide(measurements, compression.order.gate)
        self._compressions.succeed(lease, artifact, measurements, verdict)
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


def progress_of(message: Mapping[str, Any]) -> Progress:
    """A job's ``progress`` line."""
    return Progress(message["phase"], message["completed"], message["total"], message["metrics"])
