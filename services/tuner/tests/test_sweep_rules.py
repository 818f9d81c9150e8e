"""What a sweep may be asked for, over the wire, and what its user is told of it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tuner_parts import TRAINING_FILE, Parts

from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import service_pb2_grpc, sweep_pb2
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_runtime.work import JobResult
from millrace_tuner import sweep, trials
from millrace_tuner.api import TunerServicer
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Hyperparameters, Reinforcement, Supervised
from millrace_tuner.sweep import Range, Setting

TRIAL: dict[str, Any] = {
    "kind": "trial",
    "trial": 3,
    "trials": 8,
    "parameters": {"adapter.rank": 16, "learning_rate_multiplier": 0.4231},
    "state": "finished",
    "metric": "valid_loss",
    "value": 1.23456,
    "is_best": True,
    "message": "",
}


@pytest.fixture
def stub(parts: Parts) -> Iterator[service_pb2_grpc.TunerServiceStub]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    TunerServicer(parts.app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield service_pb2_grpc.TunerServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def create(
    stub: service_pb2_grpc.TunerServiceStub,
    asked: sweep_pb2.Sweep,
    method: method_pb.Method | None = None,
) -> pb.Job:
    request = pb.CreateJobRequest(
        parent="tenants/acme",
        base_model="demo",
        training_file=TRAINING_FILE,
        method=method,
        sweep=asked,
    )
    return call(stub.CreateJob, request).job


def one(name: str, **values: Any) -> sweep_pb2.Sweep:
    return sweep_pb2.Sweep(trials=4, parameters={name: sweep_pb2.Range(**values)})


DPO = method_pb.Method(dpo=method_pb.DirectPreference())
KTO = method_pb.Method(kto=method_pb.KahnemanTversky())
ALL_WEIGHTS = method_pb.Method(
    supervised=method_pb.Supervised(), adapter=method_pb.Adapter(kind="none")
)


def test_only_trials_need_to_be_said(stub: service_pb2_grpc.TunerServiceStub, parts: Parts) -> None:
    job = create(stub, sweep_pb2.Sweep(trials=8))
    assert job.sweep == sweep_pb2.Sweep(
        trials=8,
        parameters={
            "adapter.rank": sweep_pb2.Range(low=4, high=64, log=True),
            "learning_rate_multiplier": sweep_pb2.Range(low=0.1, high=10, log=True),
        },
        metric="valid_loss",
        direction="minimize",
        pruning=True,
    )
    assert call(stub.GetJob, pb.GetJobRequest(name=job.name)).job == job
    assert list(create(stub, sweep_pb2.Sweep(trials=2), ALL_WEIGHTS).sweep.parameters) == [
        "learning_rate_multiplier"
    ]


def test_every_number_of_the_method_may_be_tried(stub: service_pb2_grpc.TunerServiceStub) -> None:
    asked = sweep_pb2.Sweep(
        trials=3,
        parameters={
            "beta": sweep_pb2.Range(low=0.05, high=0.5),
            "epochs": sweep_pb2.Range(choices=[1, 2]),
            "adapter.dropout": sweep_pb2.Range(low=0, high=0.3),
        },
        metric="valid_accuracy",
        direction="maximize",
        pruning=False,
        patience=2,
    )
    assert create(stub, asked, DPO).sweep == asked


@pytest.mark.parametrize(
    ("asked", "method", "field", "says"),
    [
        (sweep_pb2.Sweep(trials=65), None, "sweep.trials", "64"),
        (sweep_pb2.Sweep(trials=1), None, "sweep.trials", "2"),
        (sweep_pb2.Sweep(), None, "sweep.trials", "2"),
        (one("beta", low=0.1, high=1), None, "sweep.parameters.beta", "no number 'beta'"),
        (one("packing", choices=[0, 1]), None, "sweep.parameters.packing", "no number"),
        (one("epochs", low=3, high=3), None, "sweep.parameters.epochs.low", "less than high"),
        (one("epochs", low=4, high=3), None, "sweep.parameters.epochs.low", "less than high"),
        (one("epochs", low=1.5, high=3), None, "sweep.parameters.epochs", "whole"),
        (one("epochs", low=1, high=51), None, "sweep.parameters.epochs", "cannot be 51"),
        (one("epochs", low=1e300, high=2e300), None, "sweep.parameters.epochs", "cannot be"),
        (one("batch_size", choices=[0, 8]), None, "sweep.parameters.batch_size", "above 0"),
        (one("batch_size", choices=[8]), None, "sweep.parameters.batch_size", "single"),
        (one("batch_size", low=1, high=4), KTO, "sweep.parameters.batch_size", "2 at least"),
        (one("batch_size", low=1), None, "sweep.parameters.batch_size", "low and high"),
        (one("beta", low=0.1, choices=[1, 2]), DPO, "sweep.parameters.beta", "not both"),
        (one("beta", low=-1, high=2), DPO, "sweep.parameters.beta", "cannot be -1"),
        (
            one("adapter.dropout", low=0, high=0.5, log=True),
            None,
            "sweep.parameters.adapter.dropout.low",
            "above 0",
        ),
        (one("adapter.rank", low=4, high=8), ALL_WEIGHTS, "sweep.parameters.adapter.rank", "none"),
        (
            one("label_smoothing", low=0.1, high=0.2),
            DPO,
            "sweep.parameters.label_smoothing",
            "no label_smoothing",
        ),
        (sweep_pb2.Sweep(trials=2, metric="valid_accuracy"), None, "sweep.direction", "minimized"),
        (sweep_pb2.Sweep(trials=2, metric="loss"), None, "sweep.metric", "pattern"),
    ],
)
def test_a_mistake_is_refused_by_its_name(
    stub: service_pb2_grpc.TunerServiceStub,
    asked: sweep_pb2.Sweep,
    method: method_pb.Method | None,
    field: str,
    says: str,
) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        create(stub, asked, method)
    assert caught.value.field == field


def test_every_methods_objective_is_what_its_training_goes_by() -> None:
    reinforcement = Reinforcement(grader="{}")
    assert sweep.objective(reinforcement) == ("valid_reward_mean", "maximize")
    assert "evaluation_samples" not in sweep.parameters_of(reinforcement)
    assert sweep.parameters_of(reinforcement)["samples_per_prompt"] is int
    assert sweep.objective(Supervised()) == ("valid_loss", "minimize")


def test_values_are_of_the_parameters_own_type() -> None:
    setting = Setting(Supervised(), Hyperparameters(3, 8, 1.0), Adapter(rank=16, alpha=8.0))
    tried = sweep.with_values(setting, {"adapter.rank": 4.0, "epochs": 2.0})
    assert (tried.adapter.rank, tried.adapter.alpha) == (4, 2.0)
    assert isinstance(tried.hyperparameters.epochs, int)
    kept = sweep.with_values(setting, {"adapter.rank": 4.0, "adapter.alpha": 32.0})
    assert (kept.adapter.rank, kept.adapter.alpha) == (4, 32.0)
    assert sweep.value_of(tried, "adapter.rank") == 4.0
    assert sweep.value_of(tried, "epochs") == 2.0


def test_the_job_is_run_as_a_sweep_and_its_trials_are_told_and_kept(parts: Parts) -> None:
    asked = sweep.Sweep(8, {"epochs": Range(1, 3)}, "", "")  # type: ignore[arg-type]
    job = parts.create(sweep=asked)
    row = {
        "trial": 3,
        "state": "finished",
        "is_best": True,
        "parameters": {"epochs": 2},
        "measured": {"valid_loss": 1.5},
        "last_epoch": 2,
        "trained_tokens": 10,
        "seconds": 1.5,
    }
    promoted = {**TRIAL, "state": "promoted"}
    parts.job.messages = [TRIAL, TRIAL, promoted, parts.checkpoint_message(job, 20)]
    result = parts.result(job)
    parts.job.outcome = JobResult({**result.fields, "trials": [row]})
    parts.attempt.perform(parts.claim(), threading.Event())
    spec = Spec.model_validate(parts.job.specs[0])
    assert spec.sweep == job.plan.sweep
    assert spec.sweep is not None
    assert spec.sweep.metric == "valid_loss"
    done = parts.app.get("acme", job.id)
    assert (done.result_file, done.trials_file) == (
        "tenants/acme/files/file-1",
        "tenants/acme/files/file-2",
    )
    assert parts.files.results[f"{job.id}-trials.csv"] == (
        b"trial,state,is_best,epochs,valid_loss,last_epoch,trained_tokens,seconds\n"
        b"3,finished,True,2,1.5,2,10,1.5\n"
    )
    assert [message for message in parts.told(job.id) if message.startswith("Trial")] == [
        "Trial 3/8: adapter.rank=16, learning_rate_multiplier=0.4231: valid_loss=1.235, "
        "the best so far",
        "Trial 3/8 is the best, with valid_loss=1.235: its checkpoints are the job's",
    ]


@pytest.mark.parametrize(
    ("changes", "says", "level"),
    [
        ({"is_best": False}, "valid_loss=1.235", "info"),
        (
            {"state": "pruned"},
            "ended early, as valid_loss=1.235 was worse than half of the others had",
            "info",
        ),
        (
            {"state": "diverged", "value": None, "message": "the loss is not a number"},
            "diverged, the loss is not a number",
            "warn",
        ),
    ],
)
def test_the_end_of_a_trial_is_told(changes: dict[str, Any], says: str, level: str) -> None:
    event = trials.event({**TRIAL, **changes})
    assert event.message.endswith(f"=0.4231: {says}")
    assert event.level == level
    assert event.metrics["trial"] == 3.0
