import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tuner_parts import Parts

from millrace.compressor.v1 import events_pb2 as compressor
from millrace.compressor.v1 import service_pb2 as compressor_service
from millrace.registry.v1 import events_pb2 as registry
from millrace.topology import consumed_by, fact_of, produced_by
from millrace.tuner.v1 import events_pb2 as tuner
from millrace_runtime.cloudevent import Event
from millrace_tuner.domain import JobState
from millrace_tuner.events import Listener
from millrace_tuner.methods import Distillation, Reinforcement
from millrace_tuner.serving import Scene, SeenCompression, SeenRollout, SeenVersion


def deliver(parts: Parts, message: Any) -> None:
    subscriptions = Listener(parts.app).subscriptions()
    (handle,) = [s.handle for s in subscriptions if s.message is type(message)]
    handle(Event("fact-1", fact_of(type(message)), "acme", message, datetime.now(UTC)))


def reference(checkpoint: str) -> compressor_service.CheckpointReference:
    return compressor_service.CheckpointReference(name=checkpoint)


def test_subscriptions_are_those_of_the_topology(parts: Parts) -> None:
    subscribed = {fact_of(s.message).type for s in Listener(parts.app).subscriptions()}
    assert subscribed == {fact.type for fact in consumed_by("tuner")}


def test_a_settled_rollout_completes_the_job(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    for _ in range(2):
        deliver(parts, registry.RolloutSettled(checkpoint=final.name))
    assert parts.app.get("acme", job.id).state == JobState.SUCCEEDED
    assert parts.fact_kinds().count("job.succeeded") == 1


def test_a_reversed_rollout_fails_the_job(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    compression = SeenCompression("c1", final.name, "SUCCEEDED", True, (), None)
    parts.models.scenes[job.tuned_model] = Scene(
        [compression],
        [SeenVersion(1, "c1", final.name, "REGISTERED", "")],
        [SeenRollout(1, "REVERSED", "5 of 8 requests failed")],
    )
    deliver(parts, registry.RolloutReversed(checkpoint=final.name))
    failure = parts.app.get("acme", job.id).failure
    assert failure is not None
    assert failure.reason == "ROLLOUT_REVERSED"
    assert "5 of 8 requests failed" in failure.message


@pytest.mark.parametrize(
    ("message_type", "state", "reason"),
    [
        (compressor.CompressionRejected, "SUCCEEDED", "COMPRESSION_REJECTED"),
        (compressor.CompressionFailed, "FAILED", "COMPRESSION_FAILED"),
    ],
)
def test_a_compression_that_came_to_nothing_fails_the_job(
    parts: Parts, message_type: Any, state: str, reason: str
) -> None:
    parts.create()
    job, final = parts.train()
    compression = SeenCompression("c1", final.name, state, False, ("9 %",), None)
    parts.models.scenes[job.tuned_model] = Scene([compression])
    deliver(parts, message_type(checkpoint=reference(final.name)))
    failure = parts.app.get("acme", job.id).failure
    assert failure is not None
    assert failure.reason == reason


@pytest.mark.parametrize(
    "checkpoint",
    [
        "tenants/acme/runs/run-1/checkpoints/ckpt-1",
        "tenants/acme/jobs/ftjob-unknown/checkpoints/ckpt-1",
        "",
    ],
)
def test_facts_about_other_checkpoints_are_passed_over(parts: Parts, checkpoint: str) -> None:
    parts.create()
    job, _ = parts.train()
    deliver(parts, registry.RolloutSettled(checkpoint=checkpoint))
    deliver(parts, registry.RolloutReversed(checkpoint=checkpoint))
    deliver(parts, compressor.CompressionFailed(checkpoint=reference(checkpoint)))
    assert parts.app.get("acme", job.id) == job


def test_every_fact_of_the_topology_is_published(parts: Parts) -> None:
    parts.create()
    job, final = parts.train()
    deliver(parts, registry.RolloutSettled(checkpoint=final.name))
    parts.app.cancel("acme", parts.create().id)
    parts.create()
    job, final = parts.train()
    rejected = SeenCompression("c1", final.name, "SUCCEEDED", False, (), None)
    parts.models.scenes[job.tuned_model] = Scene([rejected])
    parts.app.reconcile()
    published = {subject for subject, _ in parts.facts()}
    assert published == {fact.subject("acme") for fact in produced_by("tuner")}


def test_facts_name_all_models_that_a_job_learns_from(parts: Parts) -> None:
    parts.models.versions["teacher"] = replace(
        parts.models.versions["demo"], name="tenants/acme/models/teacher/versions/2"
    )
    asked = {
        "type": "score_model",
        "name": "judge",
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }
    graders = {
        "known": {**asked, "model": "teacher"},
        "elsewhere": {**asked, "name": "other", "model": "gpt-4o"},
    }
    combined = {"type": "multi", "name": "both", "graders": graders}
    grader = {**combined, "calculate_output": "known + elsewhere"}
    for method in (Distillation(teacher="teacher"), Reinforcement(grader=json.dumps(grader))):
        parts.create(method=method)
        parts.train()
        (kind, started), *_ = reversed(
            [(subject, data) for subject, data in parts.facts() if "job.started" in subject]
        )
        assert started["companions"] == ["tenants/acme/models/teacher/versions/2"], kind
        assert started["training_file"].startswith("tenants/acme/files/")


def test_a_finished_checkpoint_carries_all_that_its_consumers_need(parts: Parts) -> None:
    parts.create(method=Distillation(teacher="demo"))
    parts.train()
    (data,) = [data for subject, data in parts.facts() if "checkpoint" in subject]
    assert set(data) == {field.name for field in tuner.CheckpointFinished.DESCRIPTOR.fields}
