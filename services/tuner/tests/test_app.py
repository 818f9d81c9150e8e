from dataclasses import replace

import pytest
from tuner_parts import TRAINING_FILE, Parts

from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from millrace_tuner.domain import JobState, Outcome
from millrace_tuner.methods import Adapter, Hyperparameters
from millrace_tuner.serving import Scene, SeenCompression, SeenVersion


def test_a_new_job_is_queued_with_every_auto_resolved(parts: Parts) -> None:
    job = parts.create(suffix="docs")
    assert job.state == JobState.QUEUED
    assert job.plan.hyperparameters == Hyperparameters(3, 8, 1.0)
    assert job.plan.adapter == Adapter(rank=16, alpha=32.0)
    assert job.tuned_model.startswith("ft:demo:acme:docs:")
    assert job.id.startswith("ftjob-")
    assert parts.rung == 2  # for its validation, and then for its training
    assert parts.told(job.id) == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file: file-train",
        "190 examples of 20,000 tokens, 3 epochs: 60,000 tokens to train on",
        "Files validated, moving job to queued state",
    ]


@pytest.mark.parametrize(
    ("wish", "field", "named"),
    [
        ({"base_model": "demp"}, "base_model", "there is demo"),
        ({"training_file": "tenants/acme/files/file-x"}, "training_file", "file-x"),
        ({"training_file": "tenants/other/files/file-y"}, "training_file", "file-y"),
        ({"validation_file": "tenants/acme/files/file-z"}, "validation_file", "file-z"),
    ],
)
def test_a_wish_that_cannot_be_met_names_its_field(
    parts: Parts, wish: dict[str, str], field: str, named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        parts.create(**wish)
    assert caught.value.field == field
    assert parts.app.page("acme", 10, "") == ([], "")


def test_an_id_that_no_model_may_have_is_refused(parts: Parts) -> None:
    version = parts.models.versions["demo"]
    parts.models.versions["demo"] = replace(version, model="m" * 230)
    with pytest.raises(InvalidArgument, match="shorter suffix"):
        parts.create(suffix="docs" * 4)


def test_the_same_request_again_asks_nobody(parts: Parts) -> None:
    job = parts.create("r1")
    parts.files.files.clear()
    assert parts.create("r1") == job


def test_jobs_of_other_tenants_are_not_there(parts: Parts) -> None:
    job = parts.create()
    for use in (parts.app.get, parts.app.cancel, parts.app.pause, parts.app.resume):
        with pytest.raises(NotFound):
            use("other", job.id)
    with pytest.raises(NotFound):
        parts.app.events("other", job.id, 10, "")
    with pytest.raises(NotFound):
        parts.app.checkpoints("other", job.id, 10, "")
    assert parts.app.page("other", 10, "") == ([], "")


def test_what_a_state_does_not_allow_is_said_in_words(parts: Parts) -> None:
    job = parts.create()
    parts.app.cancel("acme", job.id)
    assert parts.app.cancel("acme", job.id).state == JobState.CANCELLED
    with pytest.raises(FailedPrecondition, match="is CANCELLED") as caught:
        parts.app.resume("acme", job.id)
    assert caught.value.reason == "JOB_STATE"
    assert parts.fact_kinds() == ["job.cancelled"]


def test_jobs_and_events_are_paged_to_the_end(parts: Parts) -> None:
    ids = sorted((parts.create().id for _ in range(5)), reverse=True)
    found, token = [], ""
    for _ in range(3):
        page, token = parts.app.page("acme", 2, token)
        found += [job.id for job in page]
    assert (found, token) == (ids, "")
    events, token = parts.app.events("acme", ids[0], 2, "")
    rest, last = parts.app.events("acme", ids[0], 2, token)
    messages = [recorded.event.message for recorded in (*events, *rest)]
    assert messages == list(reversed(parts.told(ids[0])))
    assert last == ""


@pytest.mark.parametrize("token", ["?", "YWJj"])
def test_a_token_of_nobody_is_refused(parts: Parts, token: str) -> None:
    job = parts.create()
    with pytest.raises(InvalidArgument) as caught:
        parts.app.events("acme", job.id, 2, token)
    assert caught.value.field == "page_token"


def test_a_job_succeeds_when_its_final_checkpoint_serves(parts: Parts) -> None:
    job, final = _trained(parts)
    assert job.state == JobState.RUNNING
    assert job.progress.phase == "rollout"
    parts.app.settled("acme", job.id, final)
    parts.app.settled("acme", job.id, final)
    done = parts.app.get("acme", job.id)
    assert done.state == JobState.SUCCEEDED
    assert parts.fact_kinds() == ["job.started", "checkpoint.finished", "job.succeeded"]
    assert parts.told(job.id)[-2:] == [
        f"New fine-tuned model created: {job.tuned_model}",
        "The job has successfully completed",
    ]


def _trained(parts: Parts) -> tuple[object, str]:
    parts.create()
    job, final = parts.train()
    return job, final.id


def _rejected(checkpoint: str) -> SeenCompression:
    return SeenCompression("c1", checkpoint, "SUCCEEDED", False, ("perplexity grew by 9 %",), None)


def test_a_job_fails_with_the_measured_reason(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    parts.models.scenes[job.tuned_model] = Scene([_rejected(final.name)])
    parts.app.follow("acme", job.id, final.id)
    failed = parts.app.get("acme", job.id)
    assert failed.state == JobState.FAILED
    assert failed.failure is not None
    assert failed.failure.reason == "COMPRESSION_REJECTED"
    assert "perplexity grew by 9 %" in failed.failure.message
    assert parts.fact_kinds()[-1] == "job.failed"


def test_the_reconciler_finds_what_no_fact_has_told(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    parts.app.reconcile()
    assert parts.app.get("acme", job.id).state == JobState.RUNNING
    version = SeenVersion(1, "c1", final.name, "SERVING", "")
    parts.models.scenes[job.tuned_model] = Scene((), [version])
    parts.app.reconcile()
    assert parts.app.get("acme", job.id).state == JobState.SUCCEEDED


def test_an_outcome_that_cannot_be_asked_for_now_is_asked_for_again(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    parts.models.is_away = True
    with pytest.raises(Unavailable):
        parts.app.follow("acme", job.id, final.id)
    assert parts.app.get("acme", job.id).outcome is None


def test_facts_about_unknown_or_earlier_checkpoints_change_nothing(parts: Parts) -> None:
    parts.create()
    lease = parts.claim()
    job = parts.app.get("acme", lease.id)
    parts.attempt.record_checkpoint(lease, job, parts.checkpoint_message(job, 10, final=False))
    ((earlier,), _) = parts.app.checkpoints("acme", job.id, 10, "")
    parts.app.settled("acme", job.id, earlier.id)
    parts.app.settled("acme", job.id, "ckpt-unknown")
    parts.app.follow("acme", job.id, "ckpt-unknown")
    assert parts.app.get("acme", job.id).outcome is None


def test_a_fate_known_before_training_is_recorded_as_ended_counts(parts: Parts) -> None:
    parts.create()
    lease = parts.claim()
    job = parts.app.get("acme", lease.id)
    parts.attempt.record_checkpoint(lease, job, parts.checkpoint_message(job, 20))
    final = parts.store.final_checkpoint(job.id)
    assert final is not None
    parts.app.settled("acme", job.id, final.id)
    assert parts.app.get("acme", job.id).outcome == Outcome()
    parts.store.let_go(lease)
    done, _ = parts.train()
    assert done.state == JobState.SUCCEEDED


def test_a_validation_file_is_part_of_the_plan(parts: Parts) -> None:
    parts.files.files["tenants/acme/files/file-valid"] = parts.files.files[TRAINING_FILE]
    job = parts.create(validation_file="tenants/acme/files/file-valid")
    assert job.plan.validation_file == parts.files.files[TRAINING_FILE]
