"""Proto messages to values of the domain and back; nothing else knows both."""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.compressor.v1 import service_pb2 as compressor
from millrace.data.v1 import service_pb2 as data
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.registry.v1 import service_pb2 as registry
from millrace.tuner.v1 import events_pb2 as events
from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace_runtime import names
from millrace_tuner.app import Wish
from millrace_tuner.convert_prompt import prompt_from_proto, prompt_to_proto
from millrace_tuner.convert_sweep import sweep_from_proto, sweep_to_proto
from millrace_tuner.domain import (
    BaseVersion,
    Checkpoint,
    CheckpointFinished,
    Content,
    Fact,
    Failure,
    FileReference,
    Integration,
    Job,
    JobCancelled,
    JobFailed,
    JobStarted,
    JobState,
    JobSucceeded,
    Plan,
    Progress,
    RecordedEvent,
)
from millrace_tuner.methods import (
    Adapter,
    AdapterKind,
    Classification,
    ContinuedPretraining,
    DirectPreference,
    Distillation,
    Hyperparameters,
    KahnemanTversky,
    Method,
    OddsRatio,
    Precision,
    ProximalPolicy,
    Reinforcement,
    RewardModel,
    SequenceToSequence,
    Supervised,
)
from millrace_tuner.recovery import Recovery
from millrace_tuner.serving import SeenCompression, SeenRollout, SeenVersion

JOB_NAME = "tenants/{tenant}/jobs/{job}"
CHECKPOINT_NAME = "tenants/{tenant}/jobs/{job}/checkpoints/{checkpoint}"
VERSION_NAME = "tenants/{tenant}/models/{model}/versions/{number}"

_METHODS: dict[str, Callable[..., Method]] = {
    each.kind: each
    for each in (
        Supervised,
        DirectPreference,
        KahnemanTversky,
        OddsRatio,
        RewardModel,
        Reinforcement,
        ProximalPolicy,
        Distillation,
        ContinuedPretraining,
        Classification,
        SequenceToSequence,
    )
}
_STATES = {state: lifecycle.WorkState.Value(f"WORK_STATE_{state.value}") for state in JobState}


def job_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a job's name."""
    parts = names.parse(JOB_NAME, name)
    return parts["tenant"], parts["job"]


def checkpoint_key(name: str) -> tuple[str, str, str]:
    """(tenant, job, id) of a checkpoint's name."""
    parts = names.parse(CHECKPOINT_NAME, name)
    return parts["tenant"], parts["job"], parts["checkpoint"]


def is_own_checkpoint(name: str) -> bool:
    """Whether a checkpoint is a tuning job's, and not a training run's."""
    parts = name.split("/")
    return len(parts) == 6 and parts[2] == "jobs" and parts[4] == "checkpoints"


def wish_from_proto(request: pb.CreateJobRequest) -> Wish:
    wish = Wish(
        base_model=request.base_model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        suffix=request.suffix,
        seed=request.seed,
        metadata=dict(request.metadata),
        sweep=sweep_from_proto(request),
        integration=_integration(request),
        prompt=prompt_from_proto(request),
        recovery=_recovery(request),
    )
    if not request.HasField("method"):
        return wish
    asked = request.method
    return replace(
        wish,
        method=method_from_proto(asked),
        hyperparameters=_hyperparameters(asked.hyperparameters),
        adapter=_adapter(asked.adapter) if asked.HasField("adapter") else None,
    )


def _recovery(request: pb.CreateJobRequest) -> Recovery | None:
    if not request.HasField("recovery"):
        return None
    asked = request.recovery
    return Recovery(
        student=_content(asked.student),
        teacher=_content(asked.teacher),
        teacher_checkpoint=asked.teacher_checkpoint,
        windows=asked.windows,
    )


def _integration(request: pb.CreateJobRequest) -> Integration | None:
    for asked in request.integrations:
        return Integration(
            type=asked.type,
            experiment=asked.experiment,
            run_name=asked.run_name,
            tags=tuple(asked.tags),
            entity=asked.entity,
        )
    return None


def wanted_metadata(request: pb.ListJobsRequest) -> dict[str, str] | None:
    """As ``app.TunerApp.page`` takes it."""
    return dict(request.metadata) if request.metadata or request.without_metadata else None


def method_from_proto(asked: method_pb.Method) -> Method:
    """The kind that is set, with the defaults of ``methods`` for what is not."""
    kind = asked.WhichOneof("kind")
    assert kind is not None, "the protos' rules demand one"
    given = getattr(asked, kind)
    values = {field.name: value for field, value in given.ListFields()}
    return _METHODS[kind](**values)


def method_to_proto(method: Method) -> method_pb.Method:
    values: dict[str, Any] = asdict(method)
    message = method_pb.Method()
    given = getattr(message, values.pop("kind"))
    given.SetInParent()  # a kind without fields is set all the same
    for name, value in values.items():
        if value is not None:
            setattr(given, name, value)
    return message


def _hyperparameters(asked: method_pb.Hyperparameters) -> Hyperparameters:
    return Hyperparameters(
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate_multiplier=asked.learning_rate_multiplier,
        maximum_sequence_tokens=asked.maximum_sequence_tokens,
        early_stopping_patience=asked.early_stopping_patience,
        gradient_checkpointing=asked.gradient_checkpointing,
        precision=cast(Precision, asked.precision or "auto"),
        zero_stage=asked.zero_stage,
    )


def _adapter(asked: method_pb.Adapter) -> Adapter:
    return Adapter(
        kind=cast(AdapterKind, asked.kind or "lora"),
        rank=asked.rank,
        alpha=asked.alpha,
        dropout=asked.dropout,
        target_modules=tuple(asked.target_modules),
        full_modules=tuple(asked.full_modules),
        virtual_tokens=asked.virtual_tokens,
        quantized_base=asked.quantized_base,
    )


def job_to_proto(job: Job) -> pb.Job:
    plan = job.plan
    message = pb.Job(
        name=job.name,
        base_model=plan.base_model,
        base_version=plan.base.name,
        training_file=plan.training_file.name,
        validation_file=plan.validation_file.name if plan.validation_file else "",
        suffix=plan.suffix,
        seed=plan.seed,
        method=_plan_method(plan),
        state=_STATES[job.state],
        progress=_progress_to_proto(job.progress),
        tuned_model=job.tuned_model,
        trained_tokens=job.trained_tokens,
        result_file=job.result_file,
        trials_file=job.trials_file,
        sweep=None if plan.sweep is None else sweep_to_proto(plan.sweep),
        integrations=[pb.Integration(**asdict(plan.integration))] if plan.integration else [],
        prompt=prompt_to_proto(plan.prompt),
        create_time=_timestamp(job.create_time),
        update_time=_timestamp(job.update_time),
        finish_time=_timestamp(job.finish_time),
        validate_time=_timestamp(job.validate_time),
        estimated_finish_time=_timestamp(job.estimated_finish_time),
        metadata=dict(job.metadata),
        traceparent=job.traceparent,
    )
    if job.failure is not None:
        message.failure.CopyFrom(_failure_to_proto(job.failure))
    return message


def _plan_method(plan: Plan) -> method_pb.Method:
    message = method_to_proto(plan.method)
    message.hyperparameters.MergeFrom(method_pb.Hyperparameters(**asdict(plan.hyperparameters)))
    message.adapter.MergeFrom(method_pb.Adapter(**asdict(plan.adapter)))
    return message


def checkpoint_to_proto(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        name=checkpoint.name,
        model=checkpoint.model,
        step=checkpoint.step,
        train_loss=checkpoint.train_loss,
        valid_loss=checkpoint.valid_loss,
        final=checkpoint.final,
        content=_content_to_proto(checkpoint.content),
        create_time=_timestamp(checkpoint.create_time),
        base_checkpoint_digest=checkpoint.base_checkpoint_digest,
        training_file_digest=checkpoint.training_file_digest,
        metrics=dict(checkpoint.metrics),
        unserved=not checkpoint.served,
    )


def event_to_proto(recorded: RecordedEvent) -> pb.JobEvent:
    return pb.JobEvent(
        id=recorded.id,
        create_time=_timestamp(recorded.create_time),
        level=recorded.event.level,
        message=recorded.event.message,
        type=recorded.event.type,
        metrics=dict(recorded.event.metrics),
    )


def fact_to_proto(fact: Fact) -> Message:
    """What the outbox publishes."""
    job = fact.job
    match fact:
        case JobStarted():
            return events.JobStarted(
                job=job.name,
                base_version=job.plan.base.name,
                tuned_model=job.tuned_model,
                training_file=job.plan.training_file.name,
                companions=job.plan.companions,
            )
        case JobSucceeded():
            return events.JobSucceeded(
                job=job.name, tuned_model=job.tuned_model, trained_tokens=job.trained_tokens
            )
        case JobFailed():
            assert job.failure is not None, "a failed job has a failure"
            return events.JobFailed(job=job.name, failure=_failure_to_proto(job.failure))
        case JobCancelled():
            return events.JobCancelled(job=job.name)
        case CheckpointFinished():
            return _checkpoint_finished(job, fact.checkpoint)


def _checkpoint_finished(job: Job, checkpoint: Checkpoint) -> events.CheckpointFinished:
    content = _content_to_proto(checkpoint.content)
    return events.CheckpointFinished(
        checkpoint=checkpoint.name,
        model=checkpoint.model,
        job=job.name,
        step=checkpoint.step,
        final=checkpoint.final,
        content=content,
        # The checkpoint carries its own held-out tokens, in evaluation/.
        evaluation=content,
        base_version=job.plan.base.name,
        training_file=job.plan.training_file.name,
        training_file_digest=checkpoint.training_file_digest,
        base_checkpoint_digest=checkpoint.base_checkpoint_digest,
        companions=job.plan.companions,
    )


def file_from_proto(file: data.File) -> FileReference:
    return FileReference(file.name, _content(file.content), file.example_count)


def is_dataset(name: str) -> bool:
    """Whether a training file's name is a dataset's."""
    return name.split("/")[2] == "datasets"


def file_from_dataset(dataset: data.Dataset) -> FileReference:
    count = dataset.documents["kept_train"]
    return FileReference(dataset.name, _content(dataset.content), count)


def base_from_proto(version: registry.Version) -> BaseVersion:
    parts = names.parse(VERSION_NAME, version.name)
    evaluation = version.checkpoint.evaluation
    return BaseVersion(
        name=version.name,
        model=parts["model"],
        number=version.number,
        checkpoint=_content(version.checkpoint.content),
        evaluation=_content(evaluation) if evaluation.digest else None,
    )


def compression_from_proto(compression: compressor.Compression) -> SeenCompression:
    failure = compression.failure
    return SeenCompression(
        name=compression.name,
        checkpoint=compression.checkpoint.name,
        state=_bare(lifecycle.WorkState.Name(compression.state), "WORK_STATE_"),
        passed=compression.verdict.passed,
        reasons=tuple(compression.verdict.reasons),
        failure=Failure(failure.reason, failure.message) if failure.reason else None,
    )


def version_from_proto(version: registry.Version) -> SeenVersion:
    return SeenVersion(
        number=version.number,
        compression=version.compression,
        checkpoint=version.checkpoint.name,
        state=_bare(registry.VersionState.Name(version.state), "VERSION_STATE_"),
        reason=version.state_reason,
    )


def rollout_from_proto(rollout: registry.Rollout) -> SeenRollout:
    return SeenRollout(
        to_version=rollout.to_version,
        state=_bare(registry.RolloutState.Name(rollout.state), "ROLLOUT_STATE_"),
        reason=rollout.reason,
    )


def _bare(enumerator: str, prefix: str) -> str:
    return enumerator.removeprefix(prefix)


def _content(content: lifecycle.Content) -> Content:
    return Content(content.uri, content.digest, content.size_bytes)


def _content_to_proto(content: Content) -> lifecycle.Content:
    return lifecycle.Content(uri=content.uri, digest=content.digest, size_bytes=content.size_bytes)


def _failure_to_proto(failure: Failure) -> lifecycle.Failure:
    return lifecycle.Failure(reason=failure.reason, message=failure.message)


def _progress_to_proto(progress: Progress) -> lifecycle.Progress:
    return lifecycle.Progress(
        phase=progress.phase,
        completed=progress.completed,
        total=progress.total,
        metrics=dict(progress.metrics),
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
