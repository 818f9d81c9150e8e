"""``/v1/deployments``: desired state of serving, a model each."""

from typing import Annotated, Any, Literal

from fastapi import Header
from google.protobuf.message import Message
from pydantic import BaseModel, BeforeValidator, Field

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.analyses import Analysis, analysis, analysis_message
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
from millrace_gateway.rest.recipes import Recipe, recipe, recipe_message
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
from millrace_gateway.rest.strategies import (
    FIELDS,
    Canary,
    Strategy,
    strategy,
    strategy_message,
)
from millrace_gateway.rest.tasks import Task, TaskObject, task, task_message

ROUTER = router("deployments", "/v1/deployments")

_FIELDS = {
    "deployment.model": "model",
    "deployment.tracking": "tracking",
    "deployment.targets": "targets",
    "deployment.strategy": "strategy",
    "deployment.strategy.strategy": "strategy",
    **FIELDS,
    "deployment.serving.instance_count": "serving.instance_count",
    "deployment.serving.max_batch_size": "serving.max_batch_size",
    "deployment.serving.threads": "serving.threads",
    "deployment.serving.cache_gibibytes": "serving.cache_gibibytes",
    "deployment.serving.queue_policy.max_queue_size": "serving.queue_policy.max_queue_size",
    "deployment.serving.queue_policy.default_timeout_seconds": (
        "serving.queue_policy.default_timeout_seconds"
    ),
    **{f"deployment.analysis.{name}": f"analysis.{name}" for name in Analysis.model_fields},
    "deployment.etag": "etag",
}


def _refuse(value: Any) -> None:
    if value is not None:
        raise ValueError(
            "the engines batch in flight, so that nothing waits in Triton for this to act on; "
            "max_batch_size bounds their batch, queue_policy and the keys' priority say how "
            "requests wait in the gateway"
        )


Refused = Annotated[Any, BeforeValidator(_refuse)]


class QueuePolicy(RequestBody):
    """How requests to the model wait, at all gateways, when its engines are busy.

    The terms are those of Triton's ModelQueuePolicy. What is not given is as the gateway is set.
    """

    max_queue_size: Annotated[Int32, Field(ge=1, le=100_000)] | None = None
    default_timeout_seconds: Annotated[Number, Field(gt=0, le=600)] | None = None
    timeout_action: Annotated[
        Literal["reject"] | None, Field(description="Who has waited so long is refused (429).")
    ] = None
    allow_timeout_override: Annotated[
        Literal[False] | None, Field(description="No request has a time-out of its own.")
    ] = None


class Serving(RequestBody):
    """How Triton runs the model's versions; a change loads them again.

    The terms are those of Triton's model_config.proto. Those of its dynamic batcher are refused,
    by name, unless they ask for nothing.
    """

    instance_count: Annotated[
        Annotated[Int32, Field(ge=1, le=16)] | None,
        Field(description="Engines of each version, each with weights and a cache of its own."),
    ] = None
    max_batch_size: Annotated[
        Annotated[Int32, Field(ge=1, le=4096)] | None,
        Field(description="Sequences that one engine computes together."),
    ] = None
    threads: Annotated[
        Annotated[Int32, Field(ge=1, le=1024)] | None, Field(description="Threads of one engine.")
    ] = None
    cache_gibibytes: Annotated[
        Annotated[Int32, Field(ge=1, le=4096)] | None,
        Field(description="Memory of one engine's keys and values."),
    ] = None
    queue_policy: QueuePolicy | None = None
    preferred_batch_sizes: Refused = None
    max_queue_delay_seconds: Refused = None
    priority_levels: Refused = None
    default_priority_level: Refused = None


Tracking = Literal["every", "final"]
Targets = Annotated[list[TargetWord], Field(min_length=1)]


TaskOrNone = Annotated[
    Task | None, Field(description="What artifacts are measured by, beside perplexity.")
]


class CreateDeployment(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    tracking: Tracking = "every"
    targets: Targets = Field(default=["openvino_int8"])
    gate: Gate = Gate(max_perplexity_increase=0.02)
    strategy: Strategy = Canary(type="canary")
    serving: Serving = Serving()
    recipe: Recipe | None = None
    task: TaskOrNone = None
    analysis: Analysis | None = None


class UpdateDeployment(RequestBody):
    """What is not given stays as it is; a task that is null is taken away."""

    tracking: Tracking | None = None
    targets: Targets | None = None
    gate: Gate | None = None
    strategy: Strategy | None = None
    serving: Serving | None = None
    recipe: Recipe | None = None
    task: TaskOrNone = None
    analysis: Analysis | None = None
    etag: str | None = None


class Waiting(BaseModel):
    max_queue_size: int | None
    default_timeout_seconds: float | None


class ServedAs(BaseModel):
    """What is null is as the registry and the gateway are set."""

    instance_count: int | None
    max_batch_size: int | None
    threads: int | None
    cache_gibibytes: int | None
    queue_policy: Waiting


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
    serving: ServedAs
    recipe: Recipe
    task: TaskObject | None
    analysis: Analysis
    etag: str


@ROUTER.post("", response_model=Deployment)
async def create_deployment(body: CreateDeployment, caller: CallerOf) -> Deployment:
    """Say how a model is to be served. One that nobody says it for gets the defaults."""
    deployment = pb.Deployment(model=body.model)
    await _change(deployment, body, caller)
    request = pb.CreateDeploymentRequest(
        parent=caller.parent, deployment=deployment, request_id=caller.request_id
    )
    response = await upstream.call(caller.upstream.registry.CreateDeployment, request, _FIELDS)
    return deployment_object(response.deployment)


@ROUTER.get("", response_model=ListObject[Deployment])
async def list_deployments(
    caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    request = pb.ListDeploymentsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.registry.ListDeployments, request)
    items = [deployment_object(deployment) for deployment in response.deployments]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{deployment_id}", response_model=Deployment)
async def get_deployment(deployment_id: str, caller: CallerOf) -> Deployment:
    return deployment_object(await _get(caller, deployment_id))


@ROUTER.patch("/{deployment_id}", response_model=Deployment)
async def update_deployment(
    deployment_id: str,
    body: UpdateDeployment,
    caller: CallerOf,
    if_match: Annotated[str | None, Header(description="An etag, instead of the body's.")] = None,
) -> Deployment:
    """Change what is given. With an etag, only if nobody changed it meanwhile (409)."""
    deployment = await _get(caller, deployment_id)
    await _change(deployment, body, caller)
    etag = body.etag or (if_match or "").strip('"')
    if etag:
        deployment.etag = etag
    request = pb.UpdateDeploymentRequest(deployment=deployment)
    response = await upstream.call(caller.upstream.registry.UpdateDeployment, request, _FIELDS)
    return deployment_object(response.deployment)


async def _get(caller: Caller, deployment_id: str) -> pb.Deployment:
    name = caller.name("deployments", deployment_id, "deployment")
    request = pb.GetDeploymentRequest(name=name)
    response = await upstream.call(caller.upstream.registry.GetDeployment, request)
    return response.deployment


async def _change(
    deployment: pb.Deployment, body: CreateDeployment | UpdateDeployment, caller: Caller
) -> None:
    if body.tracking is not None:
        deployment.tracking = enum_value(  # type: ignore[assignment]
            pb.CheckpointTracking, body.tracking, "CHECKPOINT_TRACKING_"
        )
    if body.targets is not None:
        values = [enum_value(compressor_pb2.Target, word, "TARGET_") for word in body.targets]
        deployment.targets[:] = values  # type: ignore[assignment]
    if body.gate is not None:
        deployment.gate.CopyFrom(compressor_pb2.GatePolicy(**given(body.gate)))
    if body.strategy is not None:
        deployment.strategy.CopyFrom(strategy_message(body.strategy))
    if body.serving is not None:
        deployment.serving.CopyFrom(_serving(body.serving))
    if body.recipe is not None:
        deployment.recipe.CopyFrom(recipe_message(body.recipe))
    if body.task is not None:
        deployment.task.CopyFrom(await task_message(body.task, caller))
    elif "task" in body.model_fields_set:
        deployment.ClearField("task")
    if body.analysis is not None:
        deployment.analysis.CopyFrom(analysis_message(body.analysis))


def deployment_object(message: pb.Deployment) -> Deployment:
    return Deployment(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        updated_at=seconds(message.update_time),
        model=message.model,
        tracking=enum_word(pb.CheckpointTracking, message.tracking, "CHECKPOINT_TRACKING_"),
        targets=[enum_word(compressor_pb2.Target, target, "TARGET_") for target in message.targets],
        gate=gate(message.gate),
        strategy=strategy(message.strategy),
        serving=served_as(message.serving),
        recipe=recipe(message.recipe),
        task=task(message.task) if message.HasField("task") else None,
        analysis=analysis(message.analysis),
        etag=message.etag,
    )


def _serving(body: Serving) -> pb.Serving:
    policy = body.queue_policy or QueuePolicy()
    return pb.Serving(
        instance_count=body.instance_count,
        max_batch_size=body.max_batch_size,
        threads=body.threads,
        cache_gibibytes=body.cache_gibibytes,
        queue_policy=pb.QueuePolicy(
            max_queue_size=policy.max_queue_size,
            default_timeout_seconds=policy.default_timeout_seconds,
        ),
    )


def served_as(message: pb.Serving) -> ServedAs:
    policy = message.queue_policy
    return ServedAs(
        instance_count=_present(message, "instance_count"),
        max_batch_size=_present(message, "max_batch_size"),
        threads=_present(message, "threads"),
        cache_gibibytes=_present(message, "cache_gibibytes"),
        queue_policy=Waiting(
            max_queue_size=_present(policy, "max_queue_size"),
            default_timeout_seconds=_present(policy, "default_timeout_seconds"),
        ),
    )


def _present(message: Message, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None
