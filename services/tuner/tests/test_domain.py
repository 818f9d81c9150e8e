from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner import steps
from millrace_tuner.domain import (
    FINISHED,
    BaseVersion,
    Content,
    Failure,
    FileReference,
    Job,
    JobCancelled,
    JobFailed,
    JobStarted,
    JobState,
    JobSucceeded,
    Outcome,
    Plan,
    Progress,
    WrongState,
    tuned_model_id,
)
from millrace_tuner.methods import Adapter, Hyperparameters, RewardModel, Supervised

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
CONTENT = Content("file:///x", "sha256:1", 1)
PLAN = Plan(
    "demo",
    BaseVersion("tenants/acme/models/demo/versions/7", "demo", 7, CONTENT),
    FileReference("tenants/acme/files/file-1", CONTENT, 200),
    None,
    "docs",
    0,
    Supervised(),
    Hyperparameters(3, 8, 1.0),
    Adapter(),
)
QUEUED = Job("acme", "ftjob-1", PLAN, "ft:demo:acme:docs:x", NOW, NOW)
RUNNING = steps.start(QUEUED, NOW).job
TRAINED = steps.end_training(RUNNING, 100, "tenants/acme/files/file-2", NOW).job
IN_STATE = {
    JobState.QUEUED: QUEUED,
    JobState.RUNNING: RUNNING,
    JobState.SUCCEEDED: replace(TRAINED, state=JobState.SUCCEEDED),
    JobState.FAILED: replace(RUNNING, state=JobState.FAILED),
    JobState.CANCELLED: replace(QUEUED, state=JobState.CANCELLED),
    JobState.PAUSED: replace(RUNNING, state=JobState.PAUSED),
}
REJECTED = Outcome(Failure("COMPRESSION_REJECTED", "perplexity grew by 9 %"))


@pytest.mark.parametrize(
    ("step", "leads_to"),
    [
        (steps.cancel, dict.fromkeys(["QUEUED", "RUNNING", "PAUSED", "CANCELLED"], "CANCELLED")),
        (steps.pause, dict.fromkeys(["QUEUED", "RUNNING", "PAUSED"], "PAUSED")),
        (steps.resume, {"PAUSED": "QUEUED", "QUEUED": "QUEUED", "RUNNING": "RUNNING"}),
        (steps.start, {"QUEUED": "RUNNING", "RUNNING": "RUNNING"}),
    ],
)
def test_each_step_is_allowed_in_some_states_only(step: object, leads_to: dict[str, str]) -> None:
    assert callable(step)
    for state, job in IN_STATE.items():
        if state in leads_to:
            assert step(job, LATER).job.state == leads_to[state]
        else:
            with pytest.raises(WrongState, match=f"ftjob-1 is {state}"):
                step(job, LATER)


def test_a_first_start_is_a_fact_and_a_later_one_is_not() -> None:
    first = steps.start(QUEUED, NOW)
    assert first.facts == (JobStarted(first.job),)
    again = steps.start(replace(first.job, state=JobState.QUEUED), LATER)
    assert again.facts == ()
    assert again.job.start_time == NOW


def test_cancelling_says_so_once_and_takes_the_work_away() -> None:
    change = steps.cancel(RUNNING, LATER)
    assert change.facts == (JobCancelled(change.job),)
    assert change.revokes_lease
    assert steps.cancel(change.job, LATER) == type(change)(change.job)


def test_training_that_has_ended_cannot_be_paused() -> None:
    with pytest.raises(WrongState, match="nothing to pause"):
        steps.pause(TRAINED, LATER)


@pytest.mark.parametrize("outcome", [Outcome(), REJECTED])
def test_a_job_ends_when_trained_and_decided_in_either_order(outcome: Outcome) -> None:
    first = steps.settle(steps.end_training(RUNNING, 100, "f", NOW).job, outcome, LATER)
    decided = steps.settle(RUNNING, outcome, NOW)
    assert decided.job.state == JobState.RUNNING
    assert decided.facts == ()
    second = steps.end_training(decided.job, 100, "f", LATER)
    for change in (first, second):
        expected = JobSucceeded if outcome.failure is None else JobFailed
        assert [type(fact) for fact in change.facts] == [expected]
        assert change.job.failure == outcome.failure
        assert change.job.finish_time == LATER


def test_serving_outweighs_a_failure_elsewhere_and_an_end_is_an_end() -> None:
    both = steps.settle(steps.settle(RUNNING, REJECTED, NOW).job, Outcome(), NOW).job
    assert both.outcome == Outcome()
    assert steps.settle(both, REJECTED, NOW).job == both
    for state in FINISHED:
        assert steps.settle(IN_STATE[state], REJECTED, LATER).job == IN_STATE[state]


CRASH = Failure("CRASHED", "x")


def test_crashes_in_a_row_end_the_job_and_mistakes_do_at_once() -> None:
    job = RUNNING
    for attempt in range(2, steps.MAXIMUM_ATTEMPTS + 1):
        change = steps.fail_attempt(job, Failure("CRASHED", "status -9"), LATER)
        assert change.job.state == JobState.RUNNING
        assert f"(try {attempt} of 5 without progress)" in change.events[0].message
        job = change.job
    assert steps.fail_attempt(steps.keep(job, LATER).job, CRASH, LATER).job.attempts == 1
    failed = steps.fail_attempt(job, CRASH, LATER).job
    assert failed.state == JobState.FAILED
    message = "5 tries in a row came no further; the last one: x"
    assert failed.failure == Failure("CRASHED", message)
    mistake = steps.fail_attempt(RUNNING, Failure("INVALID_EXAMPLE", "line 3"), LATER)
    assert mistake.facts == (JobFailed(mistake.job),)
    assert mistake.job.failure == Failure("INVALID_EXAMPLE", "line 3")


@given(st.integers(1, 100_000))
def test_about_a_hundred_steps_are_told_among_them_first_and_last(total: int) -> None:
    told = [step for step in range(1, total + 1) if steps.is_told(step, total)]
    assert told[0] == 1
    assert told[-1] == total
    assert len(told) <= 202
    assert len(told) >= min(total, 100)


def test_a_told_step_carries_its_metrics() -> None:
    made = Progress("train", 10, 60, {"train_loss": 2.314, "learning_rate": 1e-3})
    (event,) = steps.progress(RUNNING, made, LATER).events
    assert event.message == "Step 10/60: training loss=2.31"
    assert event.metrics == {"step": 10.0, "train_loss": 2.314, "learning_rate": 1e-3}
    assert steps.progress(RUNNING, Progress("prepare", 1, 1), LATER).events == ()


@pytest.mark.parametrize(
    ("base", "suffix", "expected"),
    [
        ("demo", "docs", "ft:demo:acme:docs:k3x9ab"),
        ("demo", "", "ft:demo:acme::k3x9ab"),
        ("ft:demo:acme:docs:aaaaaa", "more", "ft:demo:acme:more:k3x9ab"),
    ],
)
def test_tuned_models_are_named_as_openai_names_them(base: str, suffix: str, expected: str) -> None:
    assert tuned_model_id(base, "acme", suffix, "k3x9ab") == expected


def test_the_files_of_a_job_are_validated_once_and_said_with_what_was_counted() -> None:
    found = {"training_examples": 190, "training_tokens": 20_000}
    change = steps.validated(QUEUED, found, LATER)
    assert change.job.validate_time == LATER
    assert change.job.state == JobState.QUEUED
    counted, queued = change.events
    assert "190 examples of 20,000 tokens, 3 epochs: 60,000 tokens" in counted.message
    assert counted.metrics == {"training_examples": 190.0, "training_tokens": 20_000.0}
    assert queued.message == "Files validated, moving job to queued state"


def test_what_the_engines_do_not_serve_has_succeeded_once_it_is_trained() -> None:
    plan = replace(PLAN, method=RewardModel())
    change = steps.end_training(replace(RUNNING, plan=plan), 100, "file", LATER)
    assert change.job.state == JobState.SUCCEEDED
    assert [type(fact) for fact in change.facts] == [JobSucceeded]


def test_the_end_of_training_is_estimated_while_it_runs() -> None:
    made = Progress("train", 5, 10, {"train_loss": 1.0, "remaining_seconds": 60.0})
    moved = steps.progress(RUNNING, made, NOW).job
    assert moved.estimated_finish_time == NOW + timedelta(seconds=60)
    assert RUNNING.estimated_finish_time is None
    assert replace(moved, state=JobState.CANCELLED).estimated_finish_time is None
