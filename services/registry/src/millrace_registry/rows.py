"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from millrace_registry.domain import (
    Canary,
    Content,
    Deployment,
    Gate,
    Immediate,
    Interface,
    Model,
    QueuePolicy,
    Rollout,
    RolloutState,
    Route,
    Serving,
    Strategy,
    Target,
    Tracking,
    Traffic,
    Version,
    VersionState,
)


def model_of(row: Row[Any], aliases: dict[str, int]) -> Model:
    return Model(
        tenant=row.tenant,
        id=row.id,
        create_time=row.create_time,
        base_model=row.base_model,
        serving_version=row.serving_version,
        aliases=aliases,
    )


def version_values(version: Version) -> dict[str, Any]:
    return {
        **{name: getattr(version, name) for name in _VERSION_COLUMNS},
        "state": version.state.value,
        "artifact": asdict(version.artifact),
        "checkpoint": dict(version.checkpoint),
        "measurements": dict(version.measurements),
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
)


def version_of(row: Row[Any]) -> Version:
    values = dict(row._mapping)
    return Version(
        **{
            **values,
            "state": VersionState(row.state),
            "artifact": Content(**row.artifact),
            "interface": Interface(**row.interface) if row.interface else None,
        }
    )


def deployment_values(deployment: Deployment) -> dict[str, Any]:
    """Column values of what a user may set, and the revision."""
    return {
        "model": deployment.model,
        "tracking": deployment.tracking.value,
        "targets": list(deployment.targets),
        "gate": asdict(deployment.gate),
        "canary": _canary_document(deployment.strategy),
        "serving": asdict(deployment.serving),
        "recipe": dict(deployment.recipe),
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
        revision=row.revision,
    )


def _canary_document(strategy: Strategy) -> dict[str, Any] | None:
    return None if isinstance(strategy, Immediate) else asdict(strategy)


def _strategy_of(document: dict[str, Any] | None) -> Strategy:
    if document is None:
        return Immediate()
    return Canary(**{**document, "steps": tuple(document["steps"])})


def _serving_of(document: dict[str, Any] | None) -> Serving:
    if document is None:
        return Serving()
    return Serving(**{**document, "queue_policy": QueuePolicy(**document["queue_policy"])})


def rollout_values(rollout: Rollout) -> dict[str, Any]:
    counters = {"new": asdict(rollout.new_before), "old": asdict(rollout.old_before)}
    values = asdict(rollout)
    del values["new_before"], values["old_before"]
    return {**values, "state": rollout.state.value, "counters": counters}


def rollout_of(row: Row[Any]) -> Rollout:
    values = dict(row._mapping)
    counters = values.pop("counters")
    return Rollout(
        **{
            **values,
            "state": RolloutState(row.state),
            "new_before": Traffic(**counters["new"]),
            "old_before": Traffic(**counters["old"]),
        }
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
