"""Where else a job's metrics go: refused without an MLflow, told to the job with one."""

import threading
from dataclasses import replace

import pytest
from tuner_parts import TRAINING_FILE, Parts

from millrace.tuner.v1 import service_pb2 as pb
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import check
from millrace_tuner import convert, tracking_rules
from millrace_tuner.app import TunerApp
from millrace_tuner.domain import Integration
from millrace_tuner.jobs.specification import Spec

WANTED = Integration("wandb", "docs", "first", ("blue", "green"), "team")


def request(*integrations: pb.Integration) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(
        parent="tenants/acme",
        base_model="demo",
        training_file=TRAINING_FILE,
        integrations=integrations,
    )


def test_without_an_mlflow_there_is_nowhere_to_go(parts: Parts) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parts.create(integration=WANTED)
    assert caught.value.field == "integrations[0].type"
    assert caught.value.reason == "TRACKING_NOT_CONFIGURED"
    assert "MILLRACE_TUNER_MLFLOW_TRACKING_URI" in str(caught.value)
    assert tracking_rules.allowed(None, False) is None


def test_a_job_is_told_what_to_call_its_run(parts: Parts) -> None:
    parts.app = TunerApp(
        parts.store,
        parts.files,
        parts.models,
        ring_relay=lambda: None,
        ring_workers=[],
        is_tracking=True,
        now=parts.clock,
    )
    job = parts.create(integration=WANTED)
    assert job.plan.integration == WANTED
    (told,) = convert.job_to_proto(job).integrations
    assert convert.wish_from_proto(request(told)).integration == WANTED
    parts.job.outcome = parts.result(job)
    parts.attempt.perform(parts.claim(), threading.Event())
    spec = Spec.model_validate(parts.job.specs[0])
    assert spec.integration == WANTED
    elsewhere = spec.model_copy(update={"integration": replace(WANTED, run_name="second")})
    assert elsewhere.digest == spec.digest


def test_what_a_run_can_be_told() -> None:
    check(request(pb.Integration(type="mlflow")))
    assert convert.wish_from_proto(request()).integration is None
    for wrong in (
        pb.Integration(type="comet"),
        pb.Integration(type="mlflow", tags=["x" * 65]),
        pb.Integration(type="mlflow", tags=[str(number) for number in range(21)]),
        pb.Integration(type="mlflow", experiment="x" * 257),
    ):
        with pytest.raises(InvalidArgument, match="integrations"):
            check(request(wrong))
    with pytest.raises(InvalidArgument, match="integrations"):
        check(request(pb.Integration(type="mlflow"), pb.Integration(type="mlflow")))
