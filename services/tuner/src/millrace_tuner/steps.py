"""Every step that a tuning job may take, as a pure function from the job to a ``Change``.

    QUEUED (until its files are validated, then until its turn)
    -> RUNNING (train, then rollout) -> SUCCEEDED | FAILED
    QUEUED | RUNNING -> CANCELLED;  QUEUED | RUNNING in training -> PAUSED -> QUEUED

The store applies a change in one transaction: the job as it is afterwards, the facts that
follow, and what its user is told in the words of the OpenAI API.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from millrace_tuner.domain import (
    FINISHED,
    Change,
    Checkpoint,
    Failure,
    Job,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobStarted,
    JobState,
    JobSucceeded,
    Outcome,
    Progress,
    WrongState,
)

MAXIMUM_ATTEMPTS = 5
"""Tries that may crash one after another; progress that is kept between begins the count anew."""
RETRIED_REASONS = frozenset(("CRASHED", "INTERNAL", "CANCELLED"))
TRAIN_PHASE = "train"
ROLLOUT_PHASE = "rollout"


def created_events(job: Job) -> tuple[JobEvent, ...]:
    """What the user of a new job is told."""
    file_id = job.plan.training_file.name.rpartition("/")[2]
    return (
        JobEvent(f"Created fine-tuning job: {job.id}", key="created"),
        JobEvent(f"Validating training file: {file_id}", key="validating"),
    )


def validated(job: Job, found: Mapping[str, Any], now: datetime) -> Change:
    """The files hold what the method needs; ``found`` is what validation counted."""
    _require(job, "validated", JobState.QUEUED)
    ready = replace(job, validate_time=now, failure=None, attempts=0, update_time=now)
    metrics = {name: float(value) for name, value in found.items()}
    tokens, epochs = int(found["training_tokens"]), job.plan.hyperparameters.epochs
    counted = (
        f"{found['training_examples']:,} examples of {tokens:,} tokens, {epochs} epochs: "
        f"{tokens * epochs:,} tokens to train on"
    )
    events = (
        JobEvent(counted, key="counted", metrics=metrics),
        JobEvent("Files validated, moving job to queued state", key="queued"),
    )
    return Change(ready, (), events)


def start(job: Job, now: datetime) -> Change:
    """A worker takes the job up, for the first time or again."""
    _require(job, "started", JobState.QUEUED, JobState.RUNNING)
    running = replace(
        job, state=JobState.RUNNING, start_time=job.start_time or now, update_time=now
    )
    if job.start_time is None:
        events = (JobEvent("Fine-tuning job started", key="started"),)
        return Change(running, (JobStarted(running),), events)
    if job.failure is not None:
        return Change(running)  # it tries whether it can go on; progress is what tells
    return Change(running, (), (JobEvent("Fine-tuning job goes on from its last state"),))


def progress(job: Job, made: Progress, now: datetime) -> Change:
    """Training has come further; every hundredth part of it is told."""
    moved = replace(job, progress=made, failure=None, update_time=now)
    if made.phase != TRAIN_PHASE or not is_told(made.completed, made.total):
        return Change(moved)
    loss = made.metrics.get("train_loss", float("nan"))
    event = JobEvent(
        f"Step {made.completed}/{made.total}: training loss={loss:.2f}",
        key=f"step-{made.completed}",
        type="metrics",
        metrics={"step": float(made.completed), **made.metrics},
    )
    return Change(moved, (), (event,))


def is_told(step: int, total: int) -> bool:
    """The first step, the last, and about a hundred between them."""
    return step in (1, total) or step % max(total // 100, 1) == 0


def checkpoint_event(checkpoint: Checkpoint) -> JobEvent:
    """What is told about a new checkpoint."""
    metrics = {"step": float(checkpoint.step), "train_loss": checkpoint.train_loss}
    if checkpoint.valid_loss is not None:
        metrics["valid_loss"] = checkpoint.valid_loss
    metrics.update(checkpoint.metrics)
    return JobEvent(
        f"Checkpoint created at step {checkpoint.step}",
        key=f"checkpoint-{checkpoint.step}",
        metrics=metrics,
    )


def end_training(
    job: Job,
    trained_tokens: int,
    result_file: str,
    now: datetime,
    trials_file: str = "",
    findings: Sequence[JobEvent] = (),
) -> Change:
    """The last checkpoint is there; what is left is its road to serving. ``findings`` are told."""
    _require(job, "trained", JobState.RUNNING)
    trained = replace(
        job,
        failure=None,
        trained_time=now,
        trained_tokens=trained_tokens,
        result_file=result_file,
        trials_file=trials_file,
        progress=replace(job.progress, phase=ROLLOUT_PHASE, completed=0, total=1),
        update_time=now,
    )
    if not job.plan.is_served:
        trained = replace(trained, outcome=Outcome())
    told = JobEvent(_trained_message(job), key="trained")
    concluded = _conclude(trained, now)
    return replace(concluded, events=(*findings, told, *concluded.events))


def _trained_message(job: Job) -> str:
    if job.plan.is_served:
        return "Training finished; the model is compressed and rolled out"
    if job.plan.is_recovery:
        return "Training finished; the compression that asked for it goes on"
    return (
        "Training finished; the engines do not serve what this method makes, so its checkpoint "
        "is the result"
    )


def settle(job: Job, outcome: Outcome, now: datetime) -> Change:
    """The fate of the final checkpoint is known. That it serves outweighs that it failed
    elsewhere; what comes after the job's end changes nothing."""
    if job.state in FINISHED or job.outcome == Outcome():
        return Change(job)
    return _conclude(replace(job, outcome=outcome, update_time=now), now)


def _conclude(job: Job, now: datetime) -> Change:
    """End a job whose training has ended and whose outcome is known."""
    if job.trained_time is None or job.outcome is None or job.state != JobState.RUNNING:
        return Change(job)
    if job.outcome.failure is not None:
        return fail(job, job.outcome.failure, now)
    succeeded = replace(
        job,
        state=JobState.SUCCEEDED,
        progress=replace(job.progress, completed=1),
        finish_time=now,
        update_time=now,
    )
    created = JobEvent(f"New fine-tuned model created: {job.tuned_model}", key="created-model")
    completed = JobEvent("The job has successfully completed", key="completed")
    events = (completed,) if job.plan.is_recovery else (created, completed)
    return Change(succeeded, (JobSucceeded(succeeded),), events)


def fail(job: Job, failure: Failure, now: datetime) -> Change:
    """The job has ended without what it was made for."""
    failed = replace(job, state=JobState.FAILED, failure=failure, finish_time=now, update_time=now)
    event = JobEvent(f"The job failed: {failure.message}", key="failed", level="error")
    return Change(failed, (JobFailed(failed),), (event,))


def fail_attempt(job: Job, failure: Failure, now: datetime) -> Change:
    """Training ended badly: it is tried again later, if that may help."""
    if failure.reason not in RETRIED_REASONS:
        return fail(job, failure, now)
    attempts = job.attempts + 1
    counted = replace(job, attempts=attempts, update_time=now)
    if attempts >= MAXIMUM_ATTEMPTS:
        in_a_row = f"{attempts} tries in a row came no further; the last one: "
        return fail(counted, replace(failure, message=in_a_row + failure.message), now)
    # Only a worker that trains makes a job RUNNING.
    is_validation = job.state == JobState.QUEUED
    what = "Validation" if is_validation else "Training"
    where = "" if is_validation else ", from its last state"
    message = (
        f"{what} was interrupted ({failure.reason}) and is tried again{where} "
        f"(try {attempts + 1} of {MAXIMUM_ATTEMPTS} without progress)"
    )
    return Change(counted, (), (JobEvent(message, level="warn"),))


def hinder(job: Job, failure: Failure, now: datetime) -> Change:
    """Training cannot go on for now, by nobody's mistake; ``failure`` is shown until it does."""
    hindered = replace(job, failure=failure, update_time=now)
    if job.failure is not None:
        return Change(hindered)
    event = JobEvent(f"Training waits ({failure.reason}): {failure.message}", level="warn")
    return Change(hindered, (), (event,))


def back_off(attempts: int, first: timedelta) -> timedelta:
    """How long to wait after so many crashes in a row: ``first``, then twice as long each time."""
    factor: int = 2 ** max(0, attempts - 1)
    return first * factor


def keep(job: Job, now: datetime) -> Change:
    """Something that was learned is on disk for good: the crashes before it count no more."""
    return Change(replace(job, attempts=0, update_time=now) if job.attempts else job)


def cancel(job: Job, now: datetime) -> Change:
    """Stop for good; cancelling twice is once.

    Raises:
        WrongState: the job has ended otherwise.
    """
    if job.state == JobState.CANCELLED:
        return Change(job)
    _require(job, "cancelled", JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
    cancelled = replace(job, state=JobState.CANCELLED, finish_time=now, update_time=now)
    event = JobEvent("Fine-tuning job cancelled", key="cancelled", level="warn")
    return Change(cancelled, (JobCancelled(cancelled),), (event,), revokes_lease=True)


def pause(job: Job, now: datetime) -> Change:
    """Stop for now, keeping what was learned; pausing twice is once.

    Raises:
        WrongState: the job has ended, or its training has.
    """
    if job.state == JobState.PAUSED:
        return Change(job)
    _require(job, "paused", JobState.QUEUED, JobState.RUNNING)
    if not job.is_training:
        raise WrongState(f"the training of job {job.id} has ended; there is nothing to pause")
    paused = replace(job, state=JobState.PAUSED, update_time=now)
    return Change(paused, (), (JobEvent("Fine-tuning job paused"),), revokes_lease=True)


def resume(job: Job, now: datetime) -> Change:
    """Go on after a pause; resuming what is not paused but unfinished changes nothing.

    Raises:
        WrongState: the job has ended.
    """
    if job.state in (JobState.QUEUED, JobState.RUNNING):
        return Change(job)
    _require(job, "resumed", JobState.PAUSED)
    queued = replace(job, state=JobState.QUEUED, update_time=now)
    return Change(queued, (), (JobEvent("Fine-tuning job resumed"),))


def _require(job: Job, verb: str, *allowed: JobState) -> None:
    if job.state not in allowed:
        states = ", ".join(allowed)
        message = f"job {job.id} is {job.state}; it can be {verb} while it is {states}"
        raise WrongState(message)
