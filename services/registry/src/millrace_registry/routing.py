"""Routes: how the requests to a model are spread, from what is desired and what answers. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from millrace_registry.domain import (
    Model,
    QueuePolicy,
    Rollout,
    RolloutState,
    Route,
    Target,
    Version,
    triton_model_name,
)


def route_of_model(
    model: Model,
    rollouts: tuple[Rollout, ...],
    versions: tuple[Version, ...],
    *,
    held: Collection[int],
    steps: Mapping[int, int],
    queue_policy: QueuePolicy = QueuePolicy(),
    answering: Mapping[int, Sequence[str]],
) -> Route:
    """What gateways may send where: versions that are ``answering``, to the endpoints on which
    they do, and no others.

    ``rollouts`` are those that have not ended; one at most is judged. The shares add up to 1,
    unless nothing that serves answers; those that are ``held`` alone, wait beside the serving one
    or get copies have none.
    """
    share = {**dict.fromkeys(held, 0.0), model.serving_version: 1.0}
    mirrored: dict[int, float] = {}
    split = ""
    for found in rollouts:
        if found.state.is_judged and found.to_version in answering:
            share[model.serving_version] -= found.traffic_share
            share[found.to_version] = found.traffic_share
            mirrored[found.to_version] = found.mirror_share
            split = found.id if found.state == RolloutState.SPLIT else ""
    targets = tuple(
        Target(
            version=version.number,
            share=share[version.number],
            endpoints=tuple(answering[version.number]),
            artifact_digest=version.artifact.digest,
            interface=version.interface,
            traceparent=version.traceparent,
            mirror_share=mirrored.get(version.number, 0.0),
        )
        for version in sorted(versions, key=lambda version: version.number)
        if version.number in share and version.number in answering and version.interface is not None
    )
    return Route(
        tenant=model.tenant,
        model=model.id,
        triton_model=triton_model_name(model.tenant, model.id),
        create_time=model.create_time,
        aliases=model.aliases,
        targets=_complete(targets),
        steps=steps,
        queue_policy=queue_policy,
        split=split,
    )


def _complete(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Shares that add up to 1: where one version alone can answer, it answers all."""
    total = sum(target.share for target in targets)
    if total <= 0:
        return targets
    return tuple(replace(target, share=round(target.share / total, 9)) for target in targets)
