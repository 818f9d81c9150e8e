"""``/v1/deployments``: desired state of serving, a model each."""

from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import BaseModel, Field

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.compressions import Gate, TargetWord, gate
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    Int32,
    Number,
    RequestBody,
    enum_value,
    enum_word,
    given,
    identifier,
    seconds,
)

ROUTER = router("deployments", "/v1/deployments")

_FIELDS = {
    "deployment.model": "model",
    "deployment.tracking": "tracking",
    "deployment.targets": "targets",
    "deployment.strategy": "strategy",
    "deployment.strategy.strategy": "strategy",
    "deployment.strategy.canary.steps": "strategy.steps",
    "deployment.strategy.canary.bake_seconds": "strategy.bake_seconds",
    "deployment.strategy.canary.minimum_requests": "strategy.minimum_requests",
    "deployment.strategy.canary.maximum_error_rate_increase": (
        "strategy.maximum_error_rate_increase"
    ),
    "deployment.etag": "etag",
}


class Immediate(RequestBody):
    """All traffic at once, as soon as the new version answers."""

    type: Literal["immediate"]


class Canary(RequestBody):
    """A share of the requests first, in rising steps."""

    type: Literal["canary"]
    steps: Annotated[list[Annotated[Number, Field(gt=0, lt=1)]], Field(min_length=1)] = Field(
        default=[0.25]
    )
    bake_seconds: Annotated[Number, Field(ge=0)] = 3.0
    minimum_requests: Annotated[Int32, Field(ge=1)] = 8
    maximum_error_rate_increase: Annotated[Number, Field(ge=0, le=1)] = 0.05


Strategy = Annotated[Immediate | Canary, Field(discriminator="type")]
Tracking = Literal["every", "final"]
Targets = Annotated[list[TargetWord], Field(min_length=1)]


class CreateDeployment(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    tracking: Tracking = "every"
    targets: Targets = Field(default=["openvino_int8"])
    gate: Gate = Gate(max_perplexity_increase=0.02)
    strategy: Strategy = Canary(type="canary")


class UpdateDeployment(RequestBody):
    """What is not given stays as it is."""

    tracking: Tracking | None = None
    targets: Targets | None = None
    gate: Gate | None = None
    strategy: Strategy | None = None
    etag: str | None = None


class Deployment(BaseModel):
    id: str
    object: Literal["deployment"] = "deployment"
    created_at: int
    updated_at: int
    model: str
    tracking: str
    targets: list[str]
    gate: Gate
    strategy: Strategy | None
    etag: str


@ROUTER.post("", response_model=Deployment)
async def create_deployment(body: CreateDeployment, caller: CallerOf) -> Deployment:
    """Say how a model is to be served. One that nobody says it for gets the defaults."""
    deployment = pb.Deployment(model=body.model)
    _change(deployment, body)
    request = pb.CreateDeploymentRequest(
        parent=caller.parent, deployment=deployment, request_id=caller.request_id
    )
    response = await upstream.call(caller.upstream.registry.CreateDeployment, request, _FIELDS)
    return _deployment(response.deployment)


@ROUTER.get("", response_model=ListObject[Deployment])
async def list_deployments(
    caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    request = pb.ListDeploymentsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.registry.ListDeployments, request)
    items = [_deployment(deployment) for deployment in response.deployments]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{deployment_id}", response_model=Deployment)
async def get_deployment(deployment_id: str, caller: CallerOf) -> Deployment:
    return _deployment(await _get(caller, deployment_id))


@ROUTER.patch("/{deployment_id}", response_model=Deployment)
async def update_deployment(
    deployment_id: str,
    body: UpdateDeployment,
    caller: CallerOf,
    if_match: Annotated[str | None, Header(description="An etag, instead of the body's.")] = None,
) -> Deployment:
    """Change what is given. With an etag, only if nobody changed it meanwhile (409)."""
    deployment = await _get(caller, deployment_id)
    _change(deployment, body)
    etag = body.etag or (if_match or "").strip('"')
    if etag:
        deployment.etag = etag
    request = pb.UpdateDeploymentRequest(deployment=deployment)
    response = await upstream.call(caller.upstream.registry.UpdateDeployment, request, _FIELDS)
    return _deployment(response.deployment)


async def _get(caller: Caller, deployment_id: str) -> pb.Deployment:
    name = caller.name("deployments", deployment_id, "deployment")
    request = pb.GetDeploymentRequest(name=name)
    response = await upstream.call(caller.upstream.registry.GetDeployment, request)
    return response.deployment


def _change(deployment: pb.Deployment, body: CreateDeployment | UpdateDeployment) -> None:
    if body.tracking is not None:
        deployment.tracking = enum_value(  # type: ignore[assignment]
            pb.CheckpointTracking, body.tracking, "CHECKPOINT_TRACKING_"
        )
    if body.targets is not None:
        values = [enum_value(compressor_pb2.Target, word, "TARGET_") for word in body.targets]
        deployment.targets[:] = values  # type: ignore[assignment]
    if body.gate is not None:
        deployment.gate.CopyFrom(compressor_pb2.GatePolicy(**given(body.gate)))
    if isinstance(body.strategy, Immediate):
        deployment.strategy.CopyFrom(pb.RolloutStrategy(immediate=pb.ImmediateStrategy()))
    elif body.strategy is not None:
        canary = pb.CanaryStrategy(**body.strategy.model_dump(exclude={"type"}))
        deployment.strategy.CopyFrom(pb.RolloutStrategy(canary=canary))


def _deployment(message: pb.Deployment) -> Deployment:
    return Deployment(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        updated_at=seconds(message.update_time),
        model=message.model,
        tracking=enum_word(pb.CheckpointTracking, message.tracking, "CHECKPOINT_TRACKING_"),
        targets=[enum_word(compressor_pb2.Target, target, "TARGET_") for target in message.targets],
        gate=gate(message.gate),
        strategy=_strategy(message.strategy),
        etag=message.etag,
    )


def _strategy(message: pb.RolloutStrategy) -> Immediate | Canary | None:
    if message.HasField("immediate"):
        return Immediate(type="immediate")
    if not message.HasField("canary"):
        return None
    canary = message.canary
    return Canary(
        type="canary",
        steps=list(canary.steps),
        bake_seconds=canary.bake_seconds,
        minimum_requests=canary.minimum_requests,
        maximum_error_rate_increase=canary.maximum_error_rate_increase,
    )
