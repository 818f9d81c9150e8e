"""``/v1/training/runs``: pre-training and continued pre-training."""

import re
from typing import Any, Literal

from pydantic import BaseModel

from millrace.trainer.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
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
    STATUS_OF_STATE,
    Failure,
    Id,
    Int32,
    Number,
    Progress,
    RequestBody,
    Seed,
    failure,
    given,
    identifier,
    progress,
    seconds,
)
from millrace_runtime.errors import InvalidArgument

ROUTER = router("training", "/v1/training/runs")

_CHECKPOINT = re.compile(r"runs/[A-Za-z0-9_-]{1,80}/checkpoints/[A-Za-z0-9_-]{1,80}")


class Architecture(RequestBody):
    """Shape of a decoder-only transformer; what is not given has a default."""

    hidden_size: Int32 | None = None
    layers: Int32 | None = None
    attention_heads: Int32 | None = None
    key_value_heads: Int32 | None = None
    intermediate_size: Int32 | None = None
    context_length: Int32 | None = None


class Hyperparameters(RequestBody):
    """How to train; what is not given has a default."""

    learning_rate: Number | None = None
    total_steps: Int32 | None = None
    warmup_steps: Int32 | None = None
    batch_sequences: Int32 | None = None
    micro_batch_sequences: Int32 | None = None
    weight_decay: Number | None = None
    gradient_clip_norm: Number | None = None
    checkpoint_every_steps: Int32 | None = None
    seed: Seed | None = None
    processes: Int32 | None = None


class CreateRun(RequestBody):
    """``initial_checkpoint``: ``runs/run-…/checkpoints/ckpt-…``, to continue from there."""

    model: str
    dataset: Id
    initial_checkpoint: str | None = None
    architecture: Architecture | None = None
    hyperparameters: Hyperparameters | None = None


class Run(BaseModel):
    id: str
    object: Literal["training.run"] = "training.run"
    created_at: int
    updated_at: int
    model: str
    dataset: str
    initial_checkpoint: str | None
    architecture: Architecture
    hyperparameters: Hyperparameters
    parameter_count: int
    status: str
    progress: Progress | None
    error: Failure | None


class Checkpoint(BaseModel):
    """``name`` is what ``/v1/compressions`` and ``initial_checkpoint`` take."""

    id: str
    object: Literal["training.checkpoint"] = "training.checkpoint"
    name: str
    created_at: int
    run: str
    model: str
    step: int
    tokens_seen: int
    train_loss: float
    heldout_loss: float
    final: bool
    digest: str
    size_bytes: int
    dataset: str
    dataset_digest: str


class RunMetric(BaseModel):
    """One report; its id is its step."""

    id: str
    object: Literal["training.metric"] = "training.metric"
    created_at: int
    step: int
    metrics: dict[str, float]


@ROUTER.post("", response_model=Run)
async def create_run(body: CreateRun, caller: CallerOf) -> Run:
    """Start a run. Each finished checkpoint is compressed, measured and served by itself."""
    request = pb.CreateRunRequest(
        parent=caller.parent,
        model=body.model,
        dataset=f"{caller.parent}/datasets/{body.dataset}",
        initial_checkpoint=_checkpoint_name(caller, body.initial_checkpoint),
        architecture=pb.Architecture(**given(body.architecture)),
        hyperparameters=pb.Hyperparameters(**given(body.hyperparameters)),
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.trainer.CreateRun, request)
    return _run(caller, response.run)


@ROUTER.get("", response_model=ListObject[Run])
async def list_runs(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    request = pb.ListRunsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.trainer.ListRuns, request)
    return page_of([_run(caller, run) for run in response.runs], bool(response.next_page_token))


@ROUTER.get("/{run_id}", response_model=Run)
async def get_run(run_id: str, caller: CallerOf) -> Run:
    request = pb.GetRunRequest(name=_run_name(caller, run_id))
    response = await upstream.call(caller.upstream.trainer.GetRun, request)
    return _run(caller, response.run)


@ROUTER.post("/{run_id}/cancel", response_model=Run)
async def cancel_run(run_id: str, caller: CallerOf) -> Run:
    request = pb.CancelRunRequest(name=_run_name(caller, run_id))
    response = await upstream.call(caller.upstream.trainer.CancelRun, request)
    return _run(caller, response.run)


@ROUTER.post("/{run_id}/pause", response_model=Run)
async def pause_run(run_id: str, caller: CallerOf) -> Run:
    """Stop the run after its newest checkpoint."""
    request = pb.PauseRunRequest(name=_run_name(caller, run_id))
    response = await upstream.call(caller.upstream.trainer.PauseRun, request)
    return _run(caller, response.run)


@ROUTER.post("/{run_id}/resume", response_model=Run)
async def resume_run(run_id: str, caller: CallerOf) -> Run:
    """Take a paused run up from its newest checkpoint."""
    request = pb.ResumeRunRequest(name=_run_name(caller, run_id))
    response = await upstream.call(caller.upstream.trainer.ResumeRun, request)
    return _run(caller, response.run)


@ROUTER.get("/{run_id}/checkpoints", response_model=ListObject[Checkpoint])
async def list_run_checkpoints(
    run_id: str, caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """The run's checkpoints, newest first."""
    request = pb.ListCheckpointsRequest(
        parent=_run_name(caller, run_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.trainer.ListCheckpoints, request)
    items = [_checkpoint(caller, checkpoint) for checkpoint in response.checkpoints]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{run_id}/metrics", response_model=ListObject[RunMetric])
async def list_run_metrics(
    run_id: str, caller: CallerOf, after: After = None, limit: Limit = 1000
) -> dict[str, Any]:
    """The run's measurements, oldest first."""
    request = pb.ListRunMetricsRequest(
        parent=_run_name(caller, run_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.trainer.ListRunMetrics, request)
    items = [
        RunMetric(
            id=str(metric.step),
            created_at=seconds(metric.time),
            step=metric.step,
            metrics=dict(metric.metrics),
        )
        for metric in response.metrics
    ]
    return page_of(items, bool(response.next_page_token))


def _run_name(caller: Caller, run_id: str) -> str:
    return caller.name("runs", run_id, "training run")


def _checkpoint_name(caller: Caller, relative: str | None) -> str:
    if not relative:
        return ""
    if not _CHECKPOINT.fullmatch(relative):
        raise InvalidArgument(
            "'initial_checkpoint' must look like runs/run-…/checkpoints/ckpt-…",
            field="initial_checkpoint",
        )
    return f"{caller.parent}/{relative}"


def _run(caller: Caller, run: pb.Run) -> Run:
    return Run(
        id=identifier(run.name) or "",
        created_at=seconds(run.create_time),
        updated_at=seconds(run.update_time),
        model=run.model,
        dataset=identifier(run.dataset) or "",
        initial_checkpoint=caller.relative(run.initial_checkpoint) or None,
        architecture=Architecture(**_fields(run.architecture)),
        hyperparameters=Hyperparameters(**_fields(run.hyperparameters)),
        parameter_count=run.parameter_count,
        status=STATUS_OF_STATE[run.state],
        progress=progress(run.progress),
        error=failure(run.failure),
    )


def _checkpoint(caller: Caller, checkpoint: pb.Checkpoint) -> Checkpoint:
    return Checkpoint(
        id=identifier(checkpoint.name) or "",
        name=caller.relative(checkpoint.name),
        created_at=seconds(checkpoint.create_time),
        run=checkpoint.name.split("/")[3],
        model=checkpoint.model,
        step=checkpoint.step,
        tokens_seen=checkpoint.tokens_seen,
        train_loss=checkpoint.train_loss,
        heldout_loss=checkpoint.heldout_loss,
        final=checkpoint.final,
        digest=checkpoint.content.digest,
        size_bytes=checkpoint.content.size_bytes,
        dataset=identifier(checkpoint.dataset) or "",
        dataset_digest=checkpoint.dataset_digest,
    )


def _fields(message: pb.Architecture | pb.Hyperparameters) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}
