"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from millrace_registry.domain import (
    Content,
    Deployment,
    Gate,
    Interface,
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
)
from millrace_registry.strategies import (
    KINDS,
    Analysis,
    Canary,
    Immediate,
    Shadow,
    Split,
    SplitEnd,
    Stage,
    Strategy,
    kind_of,
)
from millrace_registry.traffic import Comparison, Seen, Traffic


def model_of(row: Row[Any], aliases: dict[str, int]) -> Model:
    return Model(
        tenant=row.tenant,
        id=row.id,
        create_time=row.create_time,
        base_model=row.base_model,
        serving_version=row.serving_version,
        aliases=aliases,
        tags=row.tags or {},
    )


def version_values(version: Version) -> dict[str, Any]:
    return {
        **{name: getattr(version, name) for name in _VERSION_COLUMNS},
        "state": version.state.value,
        "artifact": asdict(version.artifact),
        "checkpoint": dict(version.checkpoint),
        "measurements": dict(version.measurements),
        "tags": dict(version.tags),
        "interface": asdict(version.interface) if version.interface else None,
    }


_VERSION_COLUMNS = (
    "tenant",
    "model",
    "number",
    "state_reason",
    "target",
    "compression",
    "traceparent",
    "create_time",
    "retire_time",
    "compress_start_time",
    "compress_finish_time",
)


def version_of(row: Row[Any]) -> Version:
    values = dict(row._mapping)
    return Version(
        **{
            **values,
            "state": VersionState(row.state),
            "artifact": Content(**row.artifact),
            "interface": Interface(**row.interface) if row.interface else None,
            "tags": row.tags or {},
        }
    )


def deployment_values(deployment: Deployment) -> dict[str, Any]:
    """Column values of what a user may set, and the revision."""
    return {
        "model": deployment.model,
        "tracking": deployment.tracking.value,
        "targets": list(deployment.targets),
        "gate": asdict(deployment.gate),
        "canary": _strategy_document(deployment.strategy),
        "serving": asdict(deployment.serving),
        "recipe": dict(deployment.recipe),
        "task": dict(deployment.task) or None,
        "analysis": asdict(deployment.analysis),
        "revision": deployment.revision,
        "create_time": deployment.create_time,
        "update_time": deployment.update_time,
    }


def deployment_of(row: Row[Any]) -> Deployment:
    return Deployment(
        tenant=row.tenant,
        id=row.id,
        model=row.model,
        create_time=row.create_time,
        update_time=row.update_time,
        tracking=Tracking(row.tracking),
        targets=tuple(row.targets),
        gate=Gate(**row.gate),
        strategy=_strategy_of(row.canary),
        serving=_serving_of(row.serving),
        recipe=row.recipe or {},
        task=row.task or {},
        analysis=Analysis(**(row.analysis or {})),
        revision=row.revision,
    )


def _strategy_document(strategy: Strategy) -> dict[str, Any] | None:
    if isinstance(strategy, Immediate):
        return None
    kind = {} if isinstance(strategy, Canary) else {"kind": kind_of(strategy)}
    return {**asdict(strategy), **kind}


def _strategy_of(document: dict[str, Any] | None) -> Strategy:
    if document is None:
        return Immediate()
    given = dict(document)
    strategy = KINDS[given.pop("kind", "canary")]
    if strategy is Canary:
        return _canary_of(given)
    if strategy is Shadow and given["then_canary"]:
        given["then_canary"] = _canary_of(given["then_canary"])
    if strategy is Split:
        given["on_end"] = SplitEnd(given["on_end"])
    return strategy(**given)


def _canary_of(document: dict[str, Any]) -> Canary:
    return Canary(**{**document, "steps": tuple(document["steps"])})


def _serving_of(document: dict[str, Any] | None) -> Serving:
    if document is None:
        return Serving()
    return Serving(**{**document, "queue_policy": QueuePolicy(**document["queue_policy"])})


def rollout_values(rollout: Rollout) -> dict[str, Any]:
    counters = asdict(rollout.before)
    values = asdict(rollout)
    del values["new_before"], values["old_before"], values["shadow_before"]
    return {**values, "state": rollout.state.value, "counters": counters}


def rollout_of(row: Row[Any]) -> Rollout:
    values = dict(row._mapping)
    del values["request_id"], values["request_digest"]
    before = _seen_of(values.pop("counters"))
    return Rollout(
        **{
            **values,
            "state": RolloutState(row.state),
            "new_before": before.new,
            "old_before": before.old,
            "shadow_before": before.shadow,
            "stage": Stage(**(row.stage or {})),
            "seen": _seen_of(row.seen or {}),
            "evidence": row.evidence or {},
            "answers_before": row.answers_before or {},
        }
    )


def _seen_of(document: dict[str, Any]) -> Seen:
    """An older registry wrote less, or nothing."""
    return Seen(
        new=Traffic(**document.get("new", {})),
        old=Traffic(**document.get("old", {})),
        shadow=Comparison(**document.get("shadow", {})),
    )


def route_document(route: Route) -> dict[str, Any]:
    """A route as JSON reads it back: lists, not tuples, and keys that are texts, so that equal
    routes compare equal."""
    targets = [{**asdict(target), "endpoints": list(target.endpoints)} for target in route.targets]
    create_time = route.create_time.isoformat()
    steps = {str(step): version for step, version in route.steps.items()}
    return {**asdict(route), "targets": targets, "steps": steps, "create_time": create_time}


def route_of(document: dict[str, Any]) -> Route:
    targets = tuple(
        Target(
            **{
                **target,
                "endpoints": tuple(target["endpoints"]),
                "interface": Interface(**target["interface"]),
            }
        )
        for target in document["targets"]
    )
    create_time = datetime.fromisoformat(document["create_time"])
    # One that an older registry wrote has no steps and no policy.
    steps = {int(step): version for step, version in document.get("steps", {}).items()}
    policy = QueuePolicy(**document.get("queue_policy", {}))
    changed = {"targets": targets, "steps": steps, "queue_policy": policy}
    return Route(**{**document, **changed, "create_time": create_time})
