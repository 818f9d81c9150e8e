"""Validation: a job's files are read as its method will read them, before it waits for its turn.

It needs no accelerator and seconds at most, so it has a worker of its own: a bad file fails
its job at once, however long the training is that the worker for training has in hand.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from millrace_runtime import storage, telemetry, work
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.leases import Lease
from millrace_runtime.manifest import ManifestError
from millrace_runtime.work import JobFailure, JobOutcome, JobResult
from millrace_tuner import steps
from millrace_tuner.domain import Change, Failure, Job, Step, utc_now
from millrace_tuner.job_specification import specification

MODULE = "millrace_tuner.jobs.validate"
_BACK_OFF = timedelta(seconds=5)

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]


class Jobs(Protocol):
    """Jobs whose files are still to be validated (``store.JobStore``)."""

    def claim_unvalidated(self) -> Lease | None: ...
    def renew(self, lease: Lease) -> Lease: ...
    def release(self, lease: Lease) -> None: ...
    def change_leased(self, lease: Lease, step: Step) -> Job: ...
    def put_off(self, lease: Lease, wait: timedelta) -> None: ...
    def let_go(self, lease: Lease) -> None: ...


class Unvalidated:
    """The source of the validating worker's work (``work.WorkSource``)."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def claim(self) -> Lease | None:
        return self._jobs.claim_unvalidated()

    def renew(self, lease: Lease) -> Lease:
        return self._jobs.renew(lease)

    def release(self, lease: Lease) -> None:
        self._jobs.release(lease)


class Validation:
    """``perform`` is what the validating worker does for each job that it claims."""

    def __init__(
        self,
        jobs: Jobs,
        content: ContentStore,
        *,
        scratch: Path,
        rings: Sequence[Callable[[], None]],
        run_job: RunJob = work.run_job,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._jobs = jobs
        self._content = content
        self._scratch = scratch
        self._rings = rings
        self._run_job = run_job
        self._now = now

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Validate the files of the job of ``lease``.

        Raises:
            LeaseLost: it was taken over, cancelled or paused meanwhile.
        """
        try:
            job = self._jobs.change_leased(lease, lambda job: Change(job))
            with telemetry.span("tuner validate", traceparent=job.traceparent):
                self._conclude(lease, self._run(job, stop))
        finally:
            self._jobs.let_go(lease)
            for ring in self._rings:
                ring()

    def _run(self, job: Job, stop: threading.Event) -> JobOutcome:
        scratch = self._scratch / f"{job.id}-validation"
        try:
            spec = specification(
                job, self._content, scratch / "out", threads=1, mlflow_tracking_uri=None
            )
        except (ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)
        return self._run_job(MODULE, spec, scratch, lambda message: None, stop)

    def _conclude(self, lease: Lease, outcome: JobOutcome) -> None:
        if isinstance(outcome, JobResult):
            found = outcome.fields
            self._jobs.change_leased(lease, lambda job: steps.validated(job, found, self._now()))
        elif isinstance(outcome, JobFailure):
            self._fail(lease, Failure(outcome.reason, outcome.message))

    def _fail(self, lease: Lease, failure: Failure) -> None:
        if failure.reason in storage.REASONS:
            self._jobs.change_leased(lease, lambda job: steps.hinder(job, failure, self._now()))
            self._jobs.put_off(lease, storage.RETRY_WAIT)
            return
        job = self._jobs.change_leased(
            lease, lambda job: steps.fail_attempt(job, failure, self._now())
        )
        if job.is_training:
            self._jobs.put_off(lease, steps.back_off(job.attempts, _BACK_OFF))
