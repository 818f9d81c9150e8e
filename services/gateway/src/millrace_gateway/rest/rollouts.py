"""``/v1/rollouts``: the road from one version to the next; ``/v1/lineage``: where it came from."""

import re
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf, no_such
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.models import resolve
from millrace_gateway.rest.rollout_evidence import RolloutEvidence, evidence_of
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    Int64,
    RequestBody,
    enum_word,
    identifier,
    seconds,
    seconds_or_none,
)

ROUTER = router("rollouts")

# Bare ids that say by their prefix what they are.
_COLLECTION_OF_PREFIX = {
    "file": "files",
    "dataset": "datasets",
    "run": "runs",
    "ftjob": "jobs",
    "compression": "compressions",
    "deployment": "deployments",
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# ``system_fingerprint`` of an answer: the beginning of its artifact's digest.
_FINGERPRINT = re.compile(r"fp_([0-9a-f]{16})")
_RELATIVE_NAME = re.compile(r"[a-z]+/[A-Za-z0-9._:-]{1,256}(/[a-z]+/[A-Za-z0-9_-]{1,80})?")


class RolloutStage(BaseModel):
    """What the present step asks for: how long it lasts at least, and how many answers."""

    strategy: str
    seconds: float
    minimum_requests: int
    steps: int


class RolloutSide(BaseModel):
    """What the present step has seen of one version, the registry's own questions too."""

    requests: int
    failures: int
    failure_rate: float
    tokens: int
    mean_first_token_seconds: float | None


class RolloutShadow(BaseModel):
    """Answers to mirrored requests beside those that clients got. ``agreement`` is the mean part of
    the longer text with which both begin; of the requests alone that have one right answer."""

    compared: int
    agreement: float | None
    truncated: int
    failed: int
    old_tokens: int
    new_tokens: int


class Rollout(BaseModel):
    """``reason`` says why it stands as it does, with the figures. Those of its last step stay when
    it has ended."""

    id: str
    object: Literal["rollout"] = "rollout"
    created_at: int
    updated_at: int
    finished_at: int | None
    deployment: str
    model: str
    from_version: int | None
    to_version: int
    status: str
    step: int
    traffic_share: float
    reason: str
    requests: int
    failures: int
    paused: bool
    mirror_share: float
    step_started_at: float | None
    stage: RolloutStage | None
    old: RolloutSide
    new: RolloutSide
    shadow: RolloutShadow | None
    evidence: RolloutEvidence | None


class CreateRollout(RequestBody):
    """``version`` may be older than the one that serves, and one that was reversed."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    version: Annotated[Int64, Field(ge=1)]


class Reverse(RequestBody):
    reason: Annotated[str, Field(max_length=1024)] = ""


class LineageNode(BaseModel):
    """``id`` is the resource's name in the tenant: ``runs/run-…/checkpoints/ckpt-…``."""

    id: str
    kind: str
    digest: str | None


class LineageEdge(BaseModel):
    cause: str
    effect: str


class Lineage(BaseModel):
    """What something came from, and led to."""

    id: str
    object: Literal["lineage"] = "lineage"
    nodes: list[LineageNode]
    edges: list[LineageEdge]


@ROUTER.post("/v1/rollouts", response_model=Rollout)
async def create_rollout(body: CreateRollout, caller: CallerOf) -> Rollout:
    """Roll a version out by its deployment's strategy; rollouts that wait give way to it."""
    request = pb.CreateRolloutRequest(
        parent=caller.parent,
        model=body.model,
        version=body.version,
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.registry.CreateRollout, request)
    return _rollout(response.rollout)


@ROUTER.get("/v1/rollouts", response_model=ListObject[Rollout])
async def list_rollouts(
    caller: CallerOf,
    model: Annotated[str, Query(description="Only this model's.")] = "",
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    request = pb.ListRolloutsRequest(
        parent=caller.parent,
        page_size=page_size(limit),
        page_token=token_after(after),
        model=model,
    )
    response = await upstream.call(caller.upstream.registry.ListRollouts, request)
    items = [_rollout(rollout) for rollout in response.rollouts]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/v1/rollouts/{rollout_id}", response_model=Rollout)
async def get_rollout(rollout_id: str, caller: CallerOf) -> Rollout:
    request = pb.GetRolloutRequest(name=caller.name("rollouts", rollout_id, "rollout"))
    response = await upstream.call(caller.upstream.registry.GetRollout, request)
    return _rollout(response.rollout)


@ROUTER.post("/v1/rollouts/{rollout_id}/pause", response_model=Rollout)
async def pause_rollout(rollout_id: str, caller: CallerOf) -> Rollout:
    """Keep a rollout where it is, with its share. One that fails is reversed all the same."""
    request = pb.PauseRolloutRequest(name=caller.name("rollouts", rollout_id, "rollout"))
    response = await upstream.call(caller.upstream.registry.PauseRollout, request)
    return _rollout(response.rollout)


@ROUTER.post("/v1/rollouts/{rollout_id}/resume", response_model=Rollout)
async def resume_rollout(rollout_id: str, caller: CallerOf) -> Rollout:
    """Let a paused rollout go on."""
    request = pb.ResumeRolloutRequest(name=caller.name("rollouts", rollout_id, "rollout"))
    response = await upstream.call(caller.upstream.registry.ResumeRollout, request)
    return _rollout(response.rollout)


@ROUTER.post("/v1/rollouts/{rollout_id}/promote", response_model=Rollout)
async def promote_rollout(rollout_id: str, caller: CallerOf) -> Rollout:
    """Settle a rollout whose new version answers now, whatever it has still to show."""
    request = pb.PromoteRolloutRequest(name=caller.name("rollouts", rollout_id, "rollout"))
    response = await upstream.call(caller.upstream.registry.PromoteRollout, request)
    return _rollout(response.rollout)


@ROUTER.post("/v1/rollouts/{rollout_id}/reverse", response_model=Rollout)
async def reverse_rollout(
    rollout_id: str, caller: CallerOf, body: Reverse | None = None
) -> Rollout:
    """Go back to the version before."""
    request = pb.ReverseRolloutRequest(
        name=caller.name("rollouts", rollout_id, "rollout"), reason=body.reason if body else ""
    )
    response = await upstream.call(caller.upstream.registry.ReverseRollout, request)
    return _rollout(response.rollout)


@ROUTER.get("/v1/lineage/{reference:path}", response_model=Lineage, tags=["lineage"])
async def get_lineage(reference: str, caller: CallerOf) -> Lineage:
    """The lineage of an answer (its ``system_fingerprint``, or its ``x-millrace-version``:
    ``demo@7``), an id (``run-…``, ``file-…``), a digest, or a name such as
    ``runs/run-…/checkpoints/ckpt-…``. Datasets and files are there with their digests."""
    request = pb.GetLineageRequest(
        name=await _lineage_name(caller, reference), parent=caller.parent
    )
    response = await upstream.call(caller.upstream.registry.GetLineage, request)
    return Lineage(
        id=reference,
        nodes=[
            LineageNode(id=caller.relative(node.name), kind=node.kind, digest=node.digest or None)
            for node in response.nodes
        ],
        edges=[
            LineageEdge(cause=caller.relative(edge.cause), effect=caller.relative(edge.effect))
            for edge in response.edges
        ],
    )


async def _lineage_name(caller: Caller, reference: str) -> str:
    if _DIGEST.fullmatch(reference):
        return reference
    if fingerprint := _FINGERPRINT.fullmatch(reference):
        return f"sha256:{fingerprint[1]}"
    if _RELATIVE_NAME.fullmatch(reference) and not reference.startswith("tenants/"):
        return f"{caller.parent}/{reference}"
    collection = _COLLECTION_OF_PREFIX.get(reference.partition("-")[0])
    if collection and "@" not in reference:
        return caller.name(collection, reference, "resource")
    if "/" in reference:
        raise no_such("resource", reference)
    return (await resolve(caller, reference)).name


def _rollout(message: pb.Rollout) -> Rollout:
    return Rollout(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        updated_at=seconds(message.update_time),
        finished_at=seconds_or_none(message, "finish_time"),
        deployment=identifier(message.deployment) or "",
        model=message.model,
        from_version=message.from_version or None,
        to_version=message.to_version,
        status=enum_word(pb.RolloutState, message.state, "ROLLOUT_STATE_"),
        step=message.step,
        traffic_share=message.traffic_share,
        reason=message.reason,
        requests=message.requests,
        failures=message.failures,
        paused=message.paused,
        mirror_share=message.mirror_share,
        step_started_at=_moment(message),
        stage=_stage(message.stage) if message.stage.strategy else None,
        old=_side(message.old_side),
        new=_side(message.new_side),
        shadow=_shadow(message.shadow) if message.stage.strategy == "shadow" else None,
        evidence=evidence_of(message.evidence) if message.HasField("evidence") else None,
    )


def _moment(message: pb.Rollout) -> float | None:
    """When its step began, in seconds; parts of them matter to a step that lasts three."""
    if not message.HasField("step_time"):
        return None
    return message.step_time.ToMilliseconds() / 1000


def _stage(message: pb.RolloutStage) -> RolloutStage:
    return RolloutStage(
        strategy=message.strategy,
        seconds=message.seconds,
        minimum_requests=message.minimum_requests,
        steps=message.steps,
    )


def _side(message: pb.RolloutSide) -> RolloutSide:
    return RolloutSide(
        requests=message.requests,
        failures=message.failures,
        failure_rate=message.failures / message.requests if message.requests else 0.0,
        tokens=message.tokens,
        mean_first_token_seconds=message.mean_first_token_seconds if message.timed else None,
    )


def _shadow(message: pb.RolloutShadow) -> RolloutShadow:
    return RolloutShadow(
        compared=message.compared,
        agreement=message.agreement if message.compared else None,
        truncated=message.truncated,
        failed=message.failed,
        old_tokens=message.old_tokens,
        new_tokens=message.new_tokens,
    )
