"""Proto messages to values of the domain and back; nothing else knows both."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.trainer.v1 import events_pb2, service_pb2
from millrace_runtime import names
from millrace_trainer.domain import (
    Checkpoint,
    CheckpointFinished,
    Content,
    Fact,
    Failure,
    Metric,
    Run,
    RunStarted,
    State,
)

RUN_NAME = "tenants/{tenant}/runs/{run}"
CHECKPOINT_NAME = "tenants/{tenant}/runs/{run}/checkpoints/{checkpoint}"

_STATES = {state: lifecycle_pb2.WorkState.Value(f"WORK_STATE_{state.value}") for state in State}


def run_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a run's name."""
    parts = names.parse(RUN_NAME, name)
    return parts["tenant"], parts["run"]


def checkpoint_key(name: str) -> tuple[str, str, str]:
    """(tenant, run id, id) of a checkpoint's name."""
    parts = names.parse(CHECKPOINT_NAME, name)
    return parts["tenant"], parts["run"], parts["checkpoint"]


def given(message: service_pb2.Architecture | service_pb2.Hyperparameters) -> dict[str, Any]:
    """The fields that are set: 0 and unset mean the default."""
    return {field.name: value for field, value in message.ListFields()}


def content_from_proto(content: lifecycle_pb2.Content) -> Content:
    return Content(content.uri, content.digest, content.size_bytes)


def failure_from_proto(failure: lifecycle_pb2.Failure) -> Failure:
    return Failure(failure.reason, failure.message)


def run_to_proto(run: Run) -> service_pb2.Run:
    progress = run.progress
    message = service_pb2.Run(
        name=run.name,
        model=run.model,
        dataset=run.dataset_name,
        initial_checkpoint=run.initial_checkpoint,
        architecture=service_pb2.Architecture(**run.architecture),
        hyperparameters=_hyperparameters_to_proto(run.hyperparameters),
        state=_STATES[run.state],
        progress=lifecycle_pb2.Progress(
            phase=progress.phase,
            completed=progress.completed,
            total=progress.total,
            metrics=progress.metrics,
        ),
        create_time=_timestamp(run.create_time),
        update_time=_timestamp(run.update_time),
        parameter_count=run.parameter_count,
        traceparent=run.traceparent,
    )
    if run.failure is not None:
        message.failure.CopyFrom(_failure_to_proto(run.failure))
    return message


def checkpoint_to_proto(checkpoint: Checkpoint) -> service_pb2.Checkpoint:
    return service_pb2.Checkpoint(
        name=checkpoint.name,
        model=checkpoint.model,
        step=checkpoint.step,
        tokens_seen=checkpoint.tokens_seen,
        train_loss=checkpoint.train_loss,
        heldout_loss=checkpoint.heldout_loss,
        final=checkpoint.final,
        content=_content_to_proto(checkpoint.content),
        create_time=_timestamp(checkpoint.create_time),
        dataset=checkpoint.dataset_name,
        dataset_digest=checkpoint.dataset.digest,
        evaluation=_content_to_proto(checkpoint.dataset),
    )


def metric_to_proto(metric: Metric) -> service_pb2.RunMetric:
    return service_pb2.RunMetric(
        step=metric.step, time=_timestamp(metric.time), metrics=metric.metrics
    )


def fact_to_proto(fact: Fact) -> Message:
    """The data of the fact's CloudEvent."""
    if isinstance(fact, CheckpointFinished):
        return _checkpoint_finished(fact.checkpoint)
    run = fact.run
    if isinstance(fact, RunStarted):
        assert run.dataset is not None, "a run starts once its dataset is there"
        return events_pb2.RunStarted(
            run=run.name,
            model=run.model,
            dataset=run.dataset_name,
            dataset_digest=run.dataset.digest,
        )
    if run.state == State.SUCCEEDED:
        steps = int(run.hyperparameters["total_steps"])
        return events_pb2.RunSucceeded(run=run.name, model=run.model, steps=steps)
    if run.state == State.CANCELLED:
        return events_pb2.RunCancelled(run=run.name, model=run.model)
    assert run.failure is not None, "a run that failed says why"
    failure = _failure_to_proto(run.failure)
    return events_pb2.RunFailed(run=run.name, model=run.model, failure=failure)


def tenant_of(fact: Fact) -> str:
    return fact.checkpoint.tenant if isinstance(fact, CheckpointFinished) else fact.run.tenant


def _checkpoint_finished(checkpoint: Checkpoint) -> events_pb2.CheckpointFinished:
    return events_pb2.CheckpointFinished(
        checkpoint=checkpoint.name,
        model=checkpoint.model,
        run=f"tenants/{checkpoint.tenant}/runs/{checkpoint.run_id}",
        step=checkpoint.step,
        final=checkpoint.final,
        content=_content_to_proto(checkpoint.content),
        evaluation=_content_to_proto(checkpoint.dataset),
        dataset=checkpoint.dataset_name,
        train_loss=checkpoint.train_loss,
        heldout_loss=checkpoint.heldout_loss,
    )


def _hyperparameters_to_proto(
    hyperparameters: Mapping[str, float | int],
) -> service_pb2.Hyperparameters:
    known = service_pb2.Hyperparameters.DESCRIPTOR.fields_by_name
    message = service_pb2.Hyperparameters()
    for name, value in hyperparameters.items():
        if name in known:
            setattr(message, name, value)
    return message


def _content_to_proto(content: Content) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(**asdict(content))


def _failure_to_proto(failure: Failure) -> lifecycle_pb2.Failure:
    return lifecycle_pb2.Failure(reason=failure.reason, message=failure.message)


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
