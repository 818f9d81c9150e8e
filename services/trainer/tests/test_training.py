import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from trainer_builders import DIGEST, LEASE_SECONDS, Parts

from millrace_runtime import manifest, storage, telemetry
from millrace_runtime.leases import LeaseLost
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped
from millrace_trainer.domain import MAXIMUM_ATTEMPTS, Content, Failure, Progress, Run, State
from millrace_trainer.jobs.specification import Spec
from millrace_trainer.training import JOB_MODULE, Trainer

BACK_OFF_SECONDS = 5.0
LONG_SECONDS = 1000.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class FakeJob:
    """Runs in place of the subprocess: says its lines, and ends as it is told."""

    def __init__(
        self, outcome: JobOutcome | None = None, checkpoints: tuple[int, ...] = ()
    ) -> None:
        self.outcome = outcome or JobResult({"steps": 3})
        self.checkpoints = checkpoints
        self.specs: list[dict[str, Any]] = []
        self.traceparents: list[str] = []
        self.before_end: Callable[[], object] = lambda: None

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
        metrics = {"loss": 2.5, "tokens_per_second": 8000.0}
        on_message(
            {"kind": "progress", "phase": "train", "completed": 1, "total": 3, "metrics": metrics}
        )
        for step in self.checkpoints:
            on_message(checkpoint_line(spec, step))
        self.before_end()
        return self.outcome


def checkpoint_line(spec: dict[str, Any], step: int) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "path": f"{spec['output_directory']}/step-{step:08d}",
        "digest": DIGEST,
        "size_bytes": 100,
        "step": step,
        "tokens_seen": step * 16,
        "train_loss": 2.5,
        "heldout_loss": None,
        "final": step == 3,
        "parameters": 5_000_000,
    }


def trainer_of(parts: Parts, tmp_path: Path, job: FakeJob) -> Trainer:
    return Trainer(
        parts.store,
        parts.content,
        scratch=tmp_path / "scratch",
        threads=2,
        mlflow_tracking_uri=None,
        ring=lambda: parts.rings.append("relay"),
        run_job=job,
        back_off_seconds=BACK_OFF_SECONDS,
        now=parts.clock,
    )


def perform(parts: Parts, trainer: Trainer) -> None:
    lease = parts.store.claim()
    assert lease is not None
    trainer.perform(lease, threading.Event())


@pytest.fixture
def run(parts: Parts) -> Run:
    """A run whose dataset is there, as far as the service looks."""
    folder = parts.content.working_path("datasets/d")
    temporary = manifest.temporary_sibling(folder)
    (temporary / "train-00000.npy").write_bytes(b"tokens")
    digest = manifest.commit(temporary, folder, "dataset", {})
    name = "tenants/acme/datasets/real"
    parts.datasets.known[name] = Content(folder.as_uri(), digest, 6)
    return parts.create(name)


def test_a_run_that_succeeds_says_all_of_it(parts: Parts, tmp_path: Path, run: Run) -> None:
    job = FakeJob(checkpoints=(2, 3))
    perform(parts, trainer_of(parts, tmp_path, job))
    done = parts.now(run)
    assert done.state is State.SUCCEEDED
    assert done.parameter_count == 5_000_000
    assert done.progress == Progress("train", 1, 3, {"loss": 2.5, "tokens_per_second": 8000.0})
    assert parts.subjects() == [
        "run.started",
        "checkpoint.finished",
        "checkpoint.finished",
        "run.succeeded",
    ]
    assert parts.facts()[-1][2] == {"run": run.name, "model": "demo", "steps": "300"}
    assert REGISTRY.get_sample_value("millrace_training_loss_nats", {"model": "demo"}) == 2.5


def test_a_checkpoints_fact_carries_what_its_consumers_need(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    perform(parts, trainer_of(parts, tmp_path, FakeJob(checkpoints=(3,))))
    data = next(data for subject, _, data in parts.facts() if subject.endswith("finished"))
    assert run.dataset is not None
    uri = (parts.root / "runs" / run.id / "step-00000003").as_uri()
    assert data["content"] == {"uri": uri, "digest": DIGEST, "size_bytes": "100"}
    assert data["evaluation"]["digest"] == run.dataset.digest
    assert (data["run"], data["step"], data["final"]) == (run.name, "3", True)
    assert "heldout_loss" not in data  # there was none, which is not 0
    checkpoint = parts.app.get_checkpoint("acme", run.id, data["checkpoint"].rsplit("/", 1)[1])
    assert checkpoint.heldout_loss is None


def test_the_job_is_told_everything_and_takes_it(parts: Parts, tmp_path: Path, run: Run) -> None:
    job = FakeJob()
    perform(parts, trainer_of(parts, tmp_path, job))
    spec = Spec.model_validate(job.specs[0])
    assert spec.dataset_path == parts.root / "datasets" / "d"
    assert spec.output_directory == parts.root / "runs" / run.id
    assert spec.hyperparameters.model_dump() == run.hyperparameters
    assert spec.architecture.model_dump() == run.architecture
    assert (spec.run_id, spec.model, spec.threads) == (run.id, "demo", 2)


def test_training_stays_in_the_requests_trace(parts: Parts, tmp_path: Path, run: Run) -> None:
    telemetry.start_tracing("test")
    parts.app.cancel("acme", run.id)
    with telemetry.span("create", traceparent=TRACEPARENT):
        parts.create(run.dataset_name)
    job = FakeJob(checkpoints=(3,))
    perform(parts, trainer_of(parts, tmp_path, job))
    of_facts = {traceparent.split("-")[1] for _, traceparent, _ in parts.facts()[1:]}
    assert {job.traceparents[0].split("-")[1], *of_facts} == {TRACEPARENT.split("-")[1]}


def test_a_crash_is_tried_again_and_its_checkpoints_are_told_once(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    crashing = FakeJob(JobFailure("CRASHED", "signal 9"), checkpoints=(2,))
    perform(parts, trainer_of(parts, tmp_path, crashing))
    waiting = parts.now(run)
    assert (waiting.state, waiting.failure) == (State.RUNNING, None)
    assert waiting.progress.phase == "retry"
    assert parts.store.claim() is None
    parts.clock.advance(BACK_OFF_SECONDS + 1)
    perform(parts, trainer_of(parts, tmp_path, FakeJob(checkpoints=(2, 3))))
    assert parts.now(run).state is State.SUCCEEDED
    assert parts.subjects().count("checkpoint.finished") == 2
    assert parts.subjects().count("run.started") == 1


def test_crashes_in_a_row_are_a_failure_and_ever_further_apart(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    trainer = trainer_of(parts, tmp_path, FakeJob(JobFailure("CRASHED", "signal 9")))
    for wait_seconds in (5, 10, 20, 40):
        perform(parts, trainer)
        parts.clock.advance(wait_seconds - 1)
        assert parts.store.claim() is None
        parts.clock.advance(2)
    perform(parts, trainer)
    message = "5 tries in a row made no checkpoint; the last one: signal 9"
    assert parts.now(run).failure == Failure("CRASHED", message)
    assert parts.subjects() == ["run.started", "run.failed"]


def test_a_run_that_gets_on_is_not_given_up(parts: Parts, tmp_path: Path, run: Run) -> None:
    """A long run on a machine that is short of memory, or one whose nodes come and go."""
    crash = JobFailure("CRASHED", "signal 9")
    for step in range(1, 10):
        for checkpoints in ((), (step,), (step,)):  # the last reports what is known already
            perform(parts, trainer_of(parts, tmp_path, FakeJob(crash, checkpoints)))
            parts.clock.advance(LONG_SECONDS)
    assert parts.now(run).state is State.RUNNING
    perform(parts, trainer_of(parts, tmp_path, FakeJob()))
    assert parts.now(run).state is State.SUCCEEDED


def test_a_users_mistake_fails_at_once(parts: Parts, tmp_path: Path, run: Run) -> None:
    diverged = JobFailure("TRAINING_DIVERGED", "the loss is nan at step 2; lower learning_rate")
    perform(parts, trainer_of(parts, tmp_path, FakeJob(diverged)))
    failed = parts.now(run)
    assert failed.state is State.FAILED
    assert failed.failure == Failure(diverged.reason, diverged.message)
    assert parts.facts()[-1][2]["failure"]["reason"] == "TRAINING_DIVERGED"


def test_a_run_waits_for_the_disk_as_long_as_it_takes(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    full = FakeJob(JobFailure("STORAGE_FULL", "the disk is full"), checkpoints=(2,))
    for _ in range(MAXIMUM_ATTEMPTS + 2):
        perform(parts, trainer_of(parts, tmp_path, full))
        waiting = parts.now(run)
        assert waiting.state is State.RUNNING
        assert waiting.failure == Failure("STORAGE_FULL", "the disk is full")
        assert parts.store.claim() is None  # not before its time
        parts.clock.advance(storage.RETRY_WAIT.total_seconds() + 1)
    perform(parts, trainer_of(parts, tmp_path, FakeJob(checkpoints=(2, 3))))
    done = parts.now(run)
    assert (done.state, done.failure) == (State.SUCCEEDED, None)
    assert parts.subjects()[-1] == "run.succeeded"


def test_a_damaged_dataset_fails_before_the_job(parts: Parts, tmp_path: Path, run: Run) -> None:
    (parts.root / "datasets" / "d" / "train-00000.npy").write_bytes(b"t0kens")
    job = FakeJob()
    perform(parts, trainer_of(parts, tmp_path, job))
    failure = parts.now(run).failure
    assert failure is not None
    assert failure.reason == "CONTENT_DAMAGED"
    assert "train-00000.npy" in failure.message
    assert job.specs == []


def test_draining_is_no_attempt(parts: Parts, tmp_path: Path, run: Run) -> None:
    """However often the service is restarted, the run is not given up for it."""
    for _ in range(6):
        perform(parts, trainer_of(parts, tmp_path, FakeJob(JobStopped())))
        parts.clock.advance(LEASE_SECONDS + 1)
    assert parts.now(run).state is State.RUNNING
    perform(parts, trainer_of(parts, tmp_path, FakeJob(JobFailure("CRASHED", "first"))))
    assert parts.now(run).state is State.RUNNING


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_a_run_taken_away_meanwhile_is_not_written(
    parts: Parts, tmp_path: Path, run: Run, action: str
) -> None:
    job = FakeJob()
    job.before_end = lambda: getattr(parts.app, action)("acme", run.id)
    with pytest.raises(LeaseLost):
        perform(parts, trainer_of(parts, tmp_path, job))
    assert parts.now(run).state is (State.CANCELLED if action == "cancel" else State.PAUSED)


def test_a_line_after_the_lease_was_lost_ends_the_job(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    """A worker that was away too long: its next line finds another at work."""
    lease = parts.store.claim()
    assert lease is not None
    job = FakeJob(checkpoints=(2,))
    trainer = trainer_of(parts, tmp_path, job)
    parts.clock.advance(LEASE_SECONDS + 1)
    assert parts.store_of("other").claim() is not None
    with pytest.raises(LeaseLost):
        trainer.perform(lease, threading.Event())
    assert job.specs == []
    assert parts.facts() == []


def test_a_run_continues_a_checkpoints_verified_content(
    parts: Parts, tmp_path: Path, run: Run
) -> None:
    folder = parts.content.working_path("runs/earlier/step-00000003")
    temporary = manifest.temporary_sibling(folder)
    (temporary / "weights").write_bytes(b"w")
    digest = manifest.commit(temporary, folder, "checkpoint", {})
    job = FakeJob(checkpoints=(3,))
    told = {"path": str(folder), "digest": digest}
    lines = trainer_of(parts, tmp_path, job)
    job.checkpoints = ()
    lease = parts.store.claim()
    assert lease is not None
    lines._add_checkpoint(lease, run, {**checkpoint_line({"output_directory": ""}, 3), **told})
    parts.store.succeed(lease)
    (checkpoint,) = parts.store.checkpoint_page("acme", run.id, "", 10)
    parts.create(run.dataset_name, initial_checkpoint=checkpoint.name)
    perform(parts, lines)
    (spec,) = job.specs
    assert spec["initial_checkpoint_path"] == str(folder)
    assert spec["initial_checkpoint_digest"] == digest
