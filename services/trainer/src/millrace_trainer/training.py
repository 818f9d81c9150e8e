"""The worker's part: one run, in subprocesses under torchrun, watched as it goes."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Counter, Gauge

from millrace_runtime import names, storage, telemetry, work
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.leases import Lease
from millrace_runtime.manifest import ManifestError
from millrace_runtime.work import JobFailure, JobOutcome, JobResult
from millrace_trainer.domain import (
    MAXIMUM_ATTEMPTS,
    RETRIED_REASONS,
    Checkpoint,
    Content,
    Failure,
    Progress,
    Run,
    back_off,
    utc_now,
)

LOG = logging.getLogger(__name__)

JOB_MODULE = "millrace_trainer.jobs.launch"

_TOKENS_PER_SECOND = Gauge(
    "millrace_training_tokens_per_second", "Of the newest step, by model.", ["model"]
)
_LOSS = Gauge("millrace_training_loss_nats", "Of the newest step, by model.", ["model"])
_CRASHES = Counter("millrace_training_crashes_total", "Tries that crashed, by reason.", ["reason"])
_CHECKPOINTS = Counter("millrace_training_checkpoints_total", "Checkpoints finished.", ["model"])

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]


class Trainings(Protocol):
    """Fenced writes to the rows of runs (``store.RunStore``)."""

    def start(self, lease: Lease) -> Run: ...
    def record_progress(self, lease: Lease, progress: Progress) -> None: ...
    def add_checkpoint(
        self, lease: Lease, checkpoint: Checkpoint, parameter_count: int
    ) -> None: ...
    def count_attempt(self, lease: Lease) -> int: ...
    def hinder(self, lease: Lease, failure: Failure) -> None: ...
    def put_off(self, lease: Lease, wait: timedelta) -> None: ...
    def succeed(self, lease: Lease) -> None: ...
    def fail(self, lease: Lease, failure: Failure) -> None: ...
    def get_checkpoint(self, tenant: str, run_id: str, id: str) -> Checkpoint | None: ...


class Trainer:
    """``perform`` is what the worker does for each run that it claims."""

    def __init__(
        self,
        runs: Trainings,
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
        self._runs = runs
        self._content = content
        self._scratch = scratch
        self._threads = threads
        self._mlflow_tracking_uri = mlflow_tracking_uri
        self._ring = ring
        self._run_job = run_job
        self._back_off = timedelta(seconds=back_off_seconds)
        self._now = now

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Train, from the newest checkpoint that is there.

        A try that crashes is put off, to be tried again from there; its lease ends with it.

        Raises:
            LeaseLost: it was taken over, paused or cancelled meanwhile.
        """
        run = self._runs.start(lease)
        self._ring()
        attributes: dict[str, str | int | float | bool] = {
            "millrace.run": run.name,
            "millrace.epoch": lease.epoch,
        }
        with telemetry.span("trainer train", traceparent=run.traceparent, attributes=attributes):
            outcome = self._train(lease, run, stop)
            if isinstance(outcome, JobResult):
                self._runs.succeed(lease)
            elif isinstance(outcome, JobFailure):
                self._fail(lease, Failure(outcome.reason, outcome.message))
        self._ring()

    def _train(self, lease: Lease, run: Run, stop: threading.Event) -> JobOutcome:
        def on_message(message: dict[str, Any]) -> None:
            if message["kind"] == "progress":
                self._runs.record_progress(lease, progress_of(message))
                _observe(run.model, message["metrics"])
            elif message["kind"] == "checkpoint":
                self._add_checkpoint(lease, run, message)

        try:
            spec = self._spec(run)
        except (ManifestError, ContentOutsideRoot, OSError) as error:
            return work.content_failure(error)
        return self._run_job(JOB_MODULE, spec, self._scratch / run.id, on_message, stop)

    def _spec(self, run: Run) -> dict[str, Any]:
        assert run.dataset is not None, "a run without its dataset is not claimed"
        spec = {
            "run_id": run.id,
            "tenant": run.tenant,
            "model": run.model,
            "dataset_path": str(self._content.directory(run.dataset.uri, run.dataset.digest)),
            "dataset_digest": run.dataset.digest,
            "output_directory": str(self._content.working_path(f"runs/{run.id}")),
            "architecture": dict(run.architecture),
            "hyperparameters": dict(run.hyperparameters),
            "threads": self._threads,
            "mlflow_tracking_uri": self._mlflow_tracking_uri,
        }
        if run.initial_checkpoint:
            content = self._initial(run)
            spec["initial_checkpoint_path"] = str(
                self._content.directory(content.uri, content.digest)
            )
            spec["initial_checkpoint_digest"] = content.digest
        return spec

    def _initial(self, run: Run) -> Content:
        _, tenant, _, run_id, _, id = run.initial_checkpoint.split("/")
        checkpoint = self._runs.get_checkpoint(tenant, run_id, id)
        assert checkpoint is not None, "a checkpoint is never removed"
        return checkpoint.content

    def _add_checkpoint(self, lease: Lease, run: Run, message: Mapping[str, Any]) -> None:
        assert run.dataset is not None
        uri = self._content.publish(Path(message["path"]))
        checkpoint = Checkpoint(
            tenant=run.tenant,
            run_id=run.id,
            id=names.new_id("ckpt"),
            model=run.model,
            step=message["step"],
            tokens_seen=message["tokens_seen"],
            train_loss=message["train_loss"],
            heldout_loss=message["heldout_loss"],
            final=message["final"],
            content=Content(uri, message["digest"], message["size_bytes"]),
            dataset_name=run.dataset_name,
            dataset=run.dataset,
            create_time=self._now(),
        )
        self._runs.add_checkpoint(lease, checkpoint, message["parameters"])
        _CHECKPOINTS.labels(run.model).inc()
        self._ring()

    def _fail(self, lease: Lease, failure: Failure) -> None:
        if failure.reason in storage.REASONS:
            LOG.warning("run %s waits: %s", lease.id, failure.message)
            self._runs.hinder(lease, failure)
            self._runs.put_off(lease, storage.RETRY_WAIT)
            return
        if failure.reason not in RETRIED_REASONS:
            self._runs.fail(lease, failure)
            return
        _CRASHES.labels(failure.reason).inc()
        attempts = self._runs.count_attempt(lease)
        if attempts < MAXIMUM_ATTEMPTS:
            wait = back_off(attempts, self._back_off)
            text = "run %s crashed, %d of %d in a row; tried again in %s: %s: %s"
            said = (failure.reason, failure.message)
            LOG.warning(text, lease.id, attempts, MAXIMUM_ATTEMPTS, wait, *said)
            self._runs.put_off(lease, wait)
        else:
            in_a_row = f"{attempts} tries in a row made no checkpoint; the last one: "
            self._runs.fail(lease, replace(failure, message=in_a_row + failure.message))


def progress_of(message: Mapping[str, Any]) -> Progress:
    """A job's ``progress`` line."""
    return Progress(message["phase"], message["completed"], message["total"], message["metrics"])


def _observe(model: str, metrics: Mapping[str, float]) -> None:
    if "tokens_per_second" in metrics:
        _TOKENS_PER_SECOND.labels(model).set(metrics["tokens_per_second"])
    if "loss" in metrics:
        _LOSS.labels(model).set(metrics["loss"])
