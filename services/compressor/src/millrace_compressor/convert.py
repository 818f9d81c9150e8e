"""Proto messages to values of the domain and back; nothing else knows both."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.compressor.v1 import events_pb2, service_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.trainer.v1 import events_pb2 as trainer_events_pb2
from millrace.tuner.v1 import events_pb2 as tuner_events_pb2
from millrace_compressor.domain import (
    Checkpoint,
    Compression,
    Content,
    GatePolicy,
    Measurements,
    Order,
    State,
    Target,
    Verdict,
)
from millrace_runtime import names

COMPRESSION_NAME = "tenants/{tenant}/compressions/{compression}"

CheckpointFinished = trainer_events_pb2.CheckpointFinished | tuner_events_pb2.CheckpointFinished

_STATES = {state: lifecycle_pb2.WorkState.Value(f"WORK_STATE_{state.value}") for state in State}
_TARGETS = {target: service_pb2.Target.Value(f"TARGET_{target.name}") for target in Target}
_TARGET_OF = {int(number): target for target, number in _TARGETS.items()}


def compression_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a compression's name."""
    parts = names.parse(COMPRESSION_NAME, name)
    return parts["tenant"], parts["compression"]


def content_from_proto(content: lifecycle_pb2.Content) -> Content:
    return Content(content.uri, content.digest, content.size_bytes)


def gate_from_proto(gate: service_pb2.GatePolicy) -> GatePolicy:
    return GatePolicy(**{field.name: value for field, value in gate.ListFields()})


def recipe_from_proto(recipe: service_pb2.Recipe) -> dict[str, Any]:
    """A recipe as JSON, without what is absent."""
    document: dict[str, Any] = json_format.MessageToDict(recipe, preserving_proto_field_name=True)
    return document


def task_from_proto(task: service_pb2.Task) -> dict[str, Any]:
    """A task as JSON; empty where none is named."""
    document: dict[str, Any] = json_format.MessageToDict(task, preserving_proto_field_name=True)
    return document


def checkpoint_of_fact(fact: CheckpointFinished) -> Checkpoint:
    """The checkpoint that ``checkpoint.finished`` tells of, whoever published it."""
    return Checkpoint(
        name=fact.checkpoint,
        model=fact.model,
        step=fact.step,
        final=fact.final,
        content=content_from_proto(fact.content),
        evaluation=content_from_proto(fact.evaluation),
    )


def order_from_proto(request: service_pb2.CreateCompressionRequest) -> Order:
    reference = request.checkpoint
    checkpoint = Checkpoint(
        name=reference.name,
        model=reference.model,
        step=reference.step,
        final=reference.final,
        content=content_from_proto(reference.content),
        evaluation=content_from_proto(reference.evaluation),
    )
    return Order(
        tenant=names.tenant_of(request.parent),
        checkpoint=checkpoint,
        target=_TARGET_OF[request.target],
        gate=gate_from_proto(request.gate),
        recipe=recipe_from_proto(request.recipe),
        task=task_from_proto(request.task),
    )


def targets_of(deployment: registry_pb2.Deployment) -> tuple[Target, ...]:
    """Those that this compressor knows: a newer registry may offer more."""
    return tuple(_TARGET_OF[number] for number in deployment.targets if number in _TARGET_OF)


def compression_to_proto(compression: Compression) -> service_pb2.Compression:
    order, progress = compression.order, compression.progress
    message = service_pb2.Compression(
        name=compression.name,
        checkpoint=_checkpoint_to_proto(order.checkpoint),
        target=_TARGETS[order.target],
        gate=_gate_to_proto(order.gate),
        recipe=json_format.ParseDict(dict(order.recipe), service_pb2.Recipe()),
        deployment=order.deployment,
        state=_STATES[compression.state],
        progress=lifecycle_pb2.Progress(
            phase=progress.phase,
            completed=progress.completed,
            total=progress.total,
            metrics=progress.metrics,
        ),
        create_time=_timestamp(compression.create_time),
        traceparent=compression.traceparent,
    )
    if order.task:
        json_format.ParseDict(dict(order.task), message.task)
    if compression.failure is not None:
        message.failure.CopyFrom(_failure_to_proto(compression))
    if compression.verdict is not None:
        message.verdict.CopyFrom(_verdict_to_proto(compression.verdict))
    if compression.measurements is not None:
        message.measurements.CopyFrom(_measurements_to_proto(compression.measurements))
        message.MergeFrom(service_pb2.Compression(chosen=_chosen(compression.measurements)))
    if compression.artifact is not None:
        message.artifact.CopyFrom(_content_to_proto(compression.artifact))
    if compression.start_time is not None:
        message.start_time.CopyFrom(_timestamp(compression.start_time))
    if compression.finish_time is not None:
        message.finish_time.CopyFrom(_timestamp(compression.finish_time))
    return message


def fact_of(compression: Compression) -> Message:
    """The fact that an ended compression is."""
    if compression.state == State.FAILED:
        return events_pb2.CompressionFailed(
            compression=compression.name,
            checkpoint=_checkpoint_to_proto(compression.order.checkpoint),
            target=_TARGETS[compression.order.target],
            failure=_failure_to_proto(compression),
        )
    assert compression.verdict is not None, "what succeeded was judged"
    return _finished(compression) if compression.verdict.passed else _rejected(compression)


def _finished(compression: Compression) -> events_pb2.ArtifactFinished:
    assert compression.artifact is not None
    assert compression.measurements is not None
    assert compression.verdict is not None
    fact = events_pb2.ArtifactFinished(
        compression=compression.name,
        checkpoint=_checkpoint_to_proto(compression.order.checkpoint),
        target=_TARGETS[compression.order.target],
        deployment=compression.order.deployment,
        artifact=_content_to_proto(compression.artifact),
        measurements=_measurements_to_proto(compression.measurements),
        verdict=_verdict_to_proto(compression.verdict),
        chosen=_chosen(compression.measurements),
    )
    if compression.start_time is not None:
        fact.start_time.CopyFrom(_timestamp(compression.start_time))
    if compression.finish_time is not None:
        fact.finish_time.CopyFrom(_timestamp(compression.finish_time))
    return fact


def _rejected(compression: Compression) -> events_pb2.CompressionRejected:
    assert compression.measurements is not None
    assert compression.verdict is not None
    return events_pb2.CompressionRejected(
        compression=compression.name,
        checkpoint=_checkpoint_to_proto(compression.order.checkpoint),
        target=_TARGETS[compression.order.target],
        measurements=_measurements_to_proto(compression.measurements),
        verdict=_verdict_to_proto(compression.verdict),
    )


def _checkpoint_to_proto(checkpoint: Checkpoint) -> service_pb2.CheckpointReference:
    return service_pb2.CheckpointReference(
        name=checkpoint.name,
        model=checkpoint.model,
        step=checkpoint.step,
        final=checkpoint.final,
        content=_content_to_proto(checkpoint.content),
        evaluation=_content_to_proto(checkpoint.evaluation),
    )


def _content_to_proto(content: Content) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(**asdict(content))


def _gate_to_proto(gate: GatePolicy) -> service_pb2.GatePolicy:
    return service_pb2.GatePolicy(**asdict(gate))


def _failure_to_proto(compression: Compression) -> lifecycle_pb2.Failure:
    assert compression.failure is not None, "what failed says why"
    return lifecycle_pb2.Failure(**asdict(compression.failure))


def _verdict_to_proto(verdict: Verdict) -> service_pb2.Verdict:
    return service_pb2.Verdict(passed=verdict.passed, reasons=verdict.reasons)


def _measurements_to_proto(measurements: Measurements) -> service_pb2.Measurements:
    return service_pb2.Measurements(**asdict(measurements))


def _chosen(measurements: Measurements) -> service_pb2.Chosen | None:
    """What a search has found; None: there was none."""
    if measurements.chosen is None:
        return None
    names = ("target", "recipe", "layers_in_8_bits")
    return service_pb2.Chosen(**{name: measurements.chosen[name] for name in names})


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
