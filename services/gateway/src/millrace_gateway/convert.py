"""Protos <-> the gateway's own domain: keys and routes. REST shapes are in ``rest``."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.gateway.v1 import events_pb2, service_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway.answers import AnswerCounts
from millrace_gateway.batches.domain import Batch, Status
from millrace_gateway.domain import Key, KeyLimits, Priority, Role
from millrace_gateway.route import QueuePolicy, Route, Target

_ROLES = {
    service_pb2.KEY_ROLE_MEMBER: Role.MEMBER,
    service_pb2.KEY_ROLE_OPERATOR: Role.OPERATOR,
}
_ROLE_VALUES = {role: value for value, role in _ROLES.items()}
_PRIORITIES = {
    # What is not said is the default.
    service_pb2.KEY_PRIORITY_UNSPECIFIED: Priority.DEFAULT,
    service_pb2.KEY_PRIORITY_HIGH: Priority.HIGH,
    service_pb2.KEY_PRIORITY_DEFAULT: Priority.DEFAULT,
    service_pb2.KEY_PRIORITY_LOW: Priority.LOW,
}
_PRIORITY_VALUES = {priority: value for value, priority in _PRIORITIES.items()}
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_generations")


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment.astimezone(UTC))
    return result


def role(value: service_pb2.KeyRole.ValueType) -> Role:
    return _ROLES[value]


def limits(message: service_pb2.KeyLimits) -> KeyLimits:
    given = {field.name: value for field, value in message.ListFields() if field.name in _LIMITS}
    return KeyLimits(**given, priority=_PRIORITIES[message.priority])


def _limits_message(limits: KeyLimits) -> service_pb2.KeyLimits:
    return service_pb2.KeyLimits(
        **{name: getattr(limits, name) for name in _LIMITS},
        priority=_PRIORITY_VALUES[limits.priority],
    )


def key_name(key: Key) -> str:
    return f"tenants/{key.tenant}/keys/{key.id}"


def key_message(key: Key) -> service_pb2.Key:
    return service_pb2.Key(
        name=key_name(key),
        display_name=key.display_name,
        role=_ROLE_VALUES[key.role],
        create_time=timestamp(key.create_time),
        revoke_time=timestamp(key.revoke_time),
        limits=_limits_message(key.limits),
    )


def key_created(key: Key) -> events_pb2.KeyCreated:
    return events_pb2.KeyCreated(key=key_name(key))


def key_updated(key: Key) -> events_pb2.KeyUpdated:
    return events_pb2.KeyUpdated(key=key_name(key))


def key_revoked(key: Key) -> events_pb2.KeyRevoked:
    return events_pb2.KeyRevoked(key=key_name(key))


def batch_created(batch: Batch) -> events_pb2.BatchCreated:
    return events_pb2.BatchCreated(batch=batch.name)


def batch_ended(batch: Batch) -> Message:
    """The fact that says how a batch ended."""
    match batch.status:
        case Status.COMPLETED:
            return events_pb2.BatchCompleted(
                batch=batch.name, completed=batch.completed, failed=batch.failed
            )
        case Status.FAILED:
            return events_pb2.BatchFailed(batch=batch.name, message=batch.errors[0].message)
        case Status.CANCELLED:
            return events_pb2.BatchCancelled(batch=batch.name)
        case Status.EXPIRED:
            return events_pb2.BatchExpired(batch=batch.name)
        case _:
            raise ValueError(f"{batch.id} has not ended: {batch.status}")


def routes(response: registry_pb2.WatchRoutesResponse) -> Sequence[Route]:
    """The whole table, as it stands now."""
    return [_route(route) for route in response.routes]


def answers(counts: AnswerCounts) -> registry_pb2.ReportAnswersRequest:
    return registry_pb2.ReportAnswersRequest(
        gateway=counts.life,
        answers=[registry_pb2.VersionAnswers(**asdict(version)) for version in counts.all()],
        shadows=[registry_pb2.ShadowAnswers(**asdict(shadow)) for shadow in counts.shadows()],
    )


def _route(route: registry_pb2.Route) -> Route:
    return Route(
        tenant=route.tenant,
        model=route.model,
        triton_model=route.triton_model,
        targets=tuple(_target(target) for target in route.targets),
        created_seconds=route.create_time.seconds,
        aliases=dict(route.aliases),
        steps=dict(route.steps),
        queue_policy=_queue_policy(route.queue_policy),
        split=route.split,
    )


def _queue_policy(policy: registry_pb2.QueuePolicy) -> QueuePolicy:
    return QueuePolicy(**{field.name: value for field, value in policy.ListFields()})


def _target(target: registry_pb2.RouteTarget) -> Target:
    return Target(
        version=target.version,
        share=target.share,
        endpoints=tuple(target.endpoints),
        artifact_digest=target.artifact_digest,
        context_length=target.context_length,
        chat_template=target.chat_template,
        bos_token=target.bos_token,
        eos_token=target.eos_token,
        other_tokens=tuple(sorted(target.other_tokens.items())),
        traceparent=target.traceparent,
        mirror_share=target.mirror_share,
    )
