"""Proto messages to values of the domain and back; nothing else knows both."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as pb
from millrace_registry.answer_counts import AnswerCounts
from millrace_registry.domain import (
    Content,
    Deployment,
    Gate,
    LineageEdge,
    LineageNode,
    Model,
    QueuePolicy,
    Rollout,
    RolloutState,
    Route,
    Serving,
    Target,
    Tracking,
    Version,
    VersionState,
    utc_now,
)
from millrace_registry.strategies import Analysis, Stage
from millrace_registry.strategy_convert import strategy_from_proto, strategy_to_proto
from millrace_registry.traffic import Comparison, Traffic
from millrace_registry.traffic_store import Compared
from millrace_runtime import names

_VERSION_STATES = {s: pb.VersionState.Value(f"VERSION_STATE_{s.value}") for s in VersionState}
_ROLLOUT_STATES = {s: pb.RolloutState.Value(f"ROLLOUT_STATE_{s.value}") for s in RolloutState}
_TRACKING = {t: pb.CheckpointTracking.Value(f"CHECKPOINT_TRACKING_{t.value}") for t in Tracking}
_TRACKING_OF = {int(number): tracking for tracking, number in _TRACKING.items()}


def model_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a model's name."""
    parts = names.parse("tenants/{tenant}/models/{model}", name)
    return parts["tenant"], parts["model"]


def version_key(name: str) -> tuple[str, str, int]:
    """(tenant, model, number) of a version's name."""
    parts = names.parse("tenants/{tenant}/models/{model}/versions/{number}", name)
    return parts["tenant"], parts["model"], int(parts["number"])


def tagged_key(name: str) -> tuple[str, str, int | None]:
    """(tenant, model, number) of a model's or a version's name; a model's number is None."""
    if "/versions/" in name:
        return version_key(name)
    return (*model_key(name), None)


def deployment_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a deployment's name."""
    parts = names.parse("tenants/{tenant}/deployments/{deployment}", name)
    return parts["tenant"], parts["deployment"]


def rollout_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a rollout's name."""
    parts = names.parse("tenants/{tenant}/rollouts/{rollout}", name)
    return parts["tenant"], parts["rollout"]


def content_from_proto(content: lifecycle_pb2.Content) -> Content:
    return Content(content.uri, content.digest, content.size_bytes)


def document_of(message: Any) -> dict[str, Any]:
    """A message as JSON that ``ParseDict`` reads again."""
    document: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return document


def counts_from_proto(seen: pb.VersionAnswers) -> tuple[tuple[str, str, int], AnswerCounts]:
    """What a gateway has counted of a version, by (tenant, model, number)."""
    counts = AnswerCounts(
        tokens=seen.tokens,
        stops=seen.stops,
        lengths=seen.lengths,
        first_token=dict(seen.first_token_latencies),
        token=dict(seen.token_latencies),
    )
    return (seen.tenant, seen.model, seen.version), counts


def moment_of(message: Message, field: str) -> datetime | None:
    """A time that may be absent."""
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return moment


def is_known_target(number: int) -> bool:
    """False for one that a newer compressor compresses for, and this registry cannot serve."""
    return number != 0 and number in compressor_pb2.Target.DESCRIPTOR.values_by_number


def target_name(number: int) -> str:
    return str(compressor_pb2.Target.DESCRIPTOR.values_by_number[number].name)


def target_of(made: compressor_pb2.Compression | compressor_events.ArtifactFinished) -> int:
    """What an artifact is made for: what was asked for, or what a search has chosen."""
    return made.chosen.target if made.HasField("chosen") else made.target


def deployment_from_proto(message: pb.Deployment, tenant: str, id: str) -> Deployment:
    """What a user may set; unset fields have the defaults."""
    default, now = Deployment(tenant, id, message.model, utc_now(), utc_now()), utc_now()
    return Deployment(
        tenant=tenant,
        id=id,
        model=message.model,
        create_time=now,
        update_time=now,
        tracking=_TRACKING_OF.get(message.tracking, default.tracking),
        targets=tuple(target_name(number) for number in message.targets),
        gate=_gate_from_proto(message.gate) if message.HasField("gate") else default.gate,
        strategy=strategy_from_proto(message.strategy) or default.strategy,
        serving=_serving_from_proto(message.serving),
        recipe=document_of(message.recipe),
        task=document_of(message.task),
        analysis=Analysis(**{field.name: value for field, value in message.analysis.ListFields()}),
    )


def expected_revision(message: pb.Deployment) -> int | None:
    """The revision that an update was written for; None when it does not say.

    An etag that was never given out stands for revision 0, at which no deployment ever is.
    """
    if not message.etag:
        return None
    return int(message.etag) if message.etag.isdecimal() else 0


def _gate_from_proto(gate: compressor_pb2.GatePolicy) -> Gate:
    given = {field.name: value for field, value in gate.ListFields()}
    return Gate(**{"max_perplexity_increase": None, **given})


def _serving_from_proto(serving: pb.Serving) -> Serving:
    given = {field.name: value for field, value in serving.ListFields()}
    policy = {field.name: value for field, value in serving.queue_policy.ListFields()}
    return Serving(**{**given, "queue_policy": QueuePolicy(**policy)})


def model_to_proto(model: Model) -> pb.Model:
    return pb.Model(
        name=model.name,
        create_time=timestamp(model.create_time),
        aliases=model.aliases,
        base_model=model.base_model,
        serving_version=model.serving_version,
        tags=model.tags,
    )


def version_to_proto(version: Version) -> pb.Version:
    return pb.Version(
        name=version.name,
        number=version.number,
        state=_VERSION_STATES[version.state],
        target=compressor_pb2.Target.Value(version.target),
        artifact=_content_to_proto(version.artifact),
        checkpoint=_parsed(version.checkpoint, compressor_pb2.CheckpointReference()),
        measurements=_parsed(version.measurements, compressor_pb2.Measurements()),
        compression=version.compression,
        create_time=timestamp(version.create_time),
        state_reason=version.state_reason,
        tags=version.tags,
    )


def deployment_to_proto(deployment: Deployment) -> pb.Deployment:
    return pb.Deployment(
        name=deployment.name,
        model=deployment.model,
        tracking=_TRACKING[deployment.tracking],
        targets=[compressor_pb2.Target.Value(target) for target in deployment.targets],
        gate=compressor_pb2.GatePolicy(**asdict(deployment.gate)),
        strategy=strategy_to_proto(deployment.strategy),
        serving=serving_to_proto(deployment.serving),
        recipe=_parsed(deployment.recipe, compressor_pb2.Recipe()),
        task=_parsed(deployment.task, compressor_pb2.Task()) if deployment.task else None,
        analysis=pb.Analysis(**asdict(deployment.analysis)),
        etag=str(deployment.revision),
        create_time=timestamp(deployment.create_time),
        update_time=timestamp(deployment.update_time),
    )


def serving_to_proto(serving: Serving) -> pb.Serving:
    policy = pb.QueuePolicy(**asdict(serving.queue_policy))
    return pb.Serving(**{**asdict(serving), "queue_policy": policy})


def rollout_to_proto(rollout: Rollout) -> pb.Rollout:
    message = pb.Rollout(
        name=rollout.name,
        deployment=f"tenants/{rollout.tenant}/deployments/{rollout.deployment}",
        model=rollout.model,
        from_version=rollout.from_version,
        to_version=rollout.to_version,
        state=_ROLLOUT_STATES[rollout.state],
        step=rollout.step,
        traffic_share=rollout.traffic_share,
        reason=rollout.reason,
        create_time=timestamp(rollout.create_time),
        update_time=timestamp(rollout.update_time),
        requests=rollout.requests,
        failures=rollout.failures,
        paused=rollout.paused,
        mirror_share=rollout.mirror_share,
        stage=_stage_to_proto(rollout.stage),
        old_side=_side_to_proto(rollout.seen.old),
        new_side=_side_to_proto(rollout.seen.new),
        shadow=_shadow_to_proto(rollout.seen.shadow),
    )
    if rollout.step_time is not None:
        message.step_time.CopyFrom(timestamp(rollout.step_time))
    if rollout.evidence:
        _parsed(rollout.evidence, message.evidence)
    if rollout.finish_time is not None:
        message.finish_time.CopyFrom(timestamp(rollout.finish_time))
    return message


def _stage_to_proto(stage: Stage) -> pb.RolloutStage:
    return pb.RolloutStage(
        strategy=stage.strategy,
        seconds=stage.seconds,
        minimum_requests=stage.minimum_requests,
        steps=stage.steps,
    )


def _side_to_proto(traffic: Traffic) -> pb.RolloutSide:
    return pb.RolloutSide(
        requests=traffic.requests,
        failures=traffic.failures,
        tokens=traffic.tokens,
        timed=traffic.timed,
        mean_first_token_seconds=traffic.mean_first_token_seconds,
    )


def _shadow_to_proto(shadow: Comparison) -> pb.RolloutShadow:
    mean = shadow.agreement / shadow.compared if shadow.compared else 0.0
    return pb.RolloutShadow(**{**asdict(shadow), "agreement": mean})


def traffic_from_proto(seen: pb.VersionAnswers) -> tuple[str, str, int, Traffic]:
    """(tenant, model, version, traffic) of a gateway's report."""
    traffic = Traffic(
        requests=seen.requests,
        failures=seen.failures,
        tokens=seen.tokens,
        timed=seen.requests - seen.failures,
        first_token_seconds=seen.first_token_seconds,
    )
    return seen.tenant, seen.model, seen.version, traffic


def compared_from_proto(seen: pb.ShadowAnswers) -> Compared:
    comparison = Comparison(
        compared=seen.compared,
        agreement=seen.agreement,
        truncated=seen.truncated,
        failed=seen.failed,
        old_tokens=seen.old_tokens,
        new_tokens=seen.new_tokens,
    )
    return Compared(seen.tenant, seen.model, seen.old_version, seen.new_version, comparison)


def route_to_proto(route: Route) -> pb.Route:
    return pb.Route(
        tenant=route.tenant,
        model=route.model,
        triton_model=route.triton_model,
        targets=[_target_to_proto(target) for target in route.targets],
        create_time=timestamp(route.create_time),
        aliases=route.aliases,
        steps=route.steps,
        queue_policy=pb.QueuePolicy(**asdict(route.queue_policy)),
        split=route.split,
    )


def _target_to_proto(target: Target) -> pb.RouteTarget:
    return pb.RouteTarget(
        version=target.version,
        share=target.share,
        endpoints=target.endpoints,
        artifact_digest=target.artifact_digest,
        traceparent=target.traceparent,
        mirror_share=target.mirror_share,
        **asdict(target.interface),
    )


def lineage_to_proto(nodes: list[LineageNode], edges: list[LineageEdge]) -> pb.GetLineageResponse:
    return pb.GetLineageResponse(
        nodes=[pb.LineageNode(**asdict(node)) for node in nodes],
        edges=[pb.LineageEdge(**asdict(edge)) for edge in edges],
    )


def _parsed(document: Mapping[str, Any], message: Any) -> Any:
    return json_format.ParseDict(dict(document), message, ignore_unknown_fields=True)


def _content_to_proto(content: Content) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(**asdict(content))


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
