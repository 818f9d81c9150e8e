"""``/v1/compressions``: checkpoints made fit for the hardware that serves them."""

import re
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import BaseModel, Field

from millrace.compressor.v1 import service_pb2 as pb
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.tuner.v1 import service_pb2 as tuner_pb2
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
from millrace_gateway.rest.measurements import MeasurementsObject, Row, measurements, rows
from millrace_gateway.rest.recipes import Recipe, recipe, recipe_message
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    STATUS_OF_STATE,
    Content,
    Failure,
    Int64,
    Number,
    Progress,
    RequestBody,
    content,
    enum_value,
    enum_word,
    failure,
    given,
    identifier,
    progress,
    seconds,
    seconds_or_none,
)
from millrace_gateway.rest.tasks import Task, TaskObject, task, task_message
from millrace_runtime.errors import InvalidArgument

ROUTER = router("compressions", "/v1/compressions")

TargetWord = Literal[
    "openvino_int8",
    "openvino_fp32",
    "openvino_int8_activations",
    "openvino_int4",
    "safetensors",
    "safetensors_bf16",
    "safetensors_pruned",
    "onnx_int8",
    "onnx_int8_dynamic",
    "compressed_tensors_w8a8",
    "compressed_tensors_fp8",
    "compressed_tensors_w4a16",
    "compressed_tensors_sparse_2_4",
    "tensorrt_fp16",
    "tensorrt_int8",
    "tensorrt_fp8",
    "auto",
]
ReportOf = Annotated[
    Literal["checkpoint", "model"],
    Query(description="Beside the artifacts of its checkpoint, or of its whole model."),
]
_CHECKPOINT = re.compile(r"(runs|jobs)/[A-Za-z0-9_-]{1,80}/checkpoints/[A-Za-z0-9_-]{1,80}")


class Gate(RequestBody):
    """When an artifact is good enough. Absent fields do not judge."""

    max_perplexity_increase: Annotated[Number, Field(ge=0)] | None = None
    min_top1_agreement: Annotated[Number, Field(ge=0, le=1)] | None = None
    max_size_ratio: Annotated[Number, Field(gt=0)] | None = None
    max_latency_seconds: Annotated[Number, Field(gt=0)] | None = None
    max_size_bytes: Annotated[Int64, Field(gt=0)] | None = None
    max_task_score_decrease: Annotated[
        Annotated[Number, Field(ge=0, le=1)] | None,
        Field(description="Absolute: 0.02 lets 50 % become 48 %. Without a task nothing passes."),
    ] = None
    min_task_score: Annotated[Number, Field(ge=0, le=1)] | None = None


class CreateCompression(RequestBody):
    """``checkpoint``: ``runs/run-…/checkpoints/ckpt-…`` or ``jobs/ftjob-…/checkpoints/ckpt-…``."""

    checkpoint: str
    target: TargetWord
    gate: Gate | None = None
    recipe: Recipe | None = None
    task: Task | None = None


class Verdict(BaseModel):
    passed: bool
    reasons: list[str]


class Chosen(BaseModel):
    """What the artifact of the target ``auto`` is."""

    target: str
    recipe: Recipe
    layers_in_8_bits: int


class Compression(BaseModel):
    """One checkpoint for one target. A verdict that did not pass is a rejection."""

    id: str
    object: Literal["compression"] = "compression"
    created_at: int
    started_at: int | None
    finished_at: int | None
    model: str
    checkpoint: str
    checkpoint_step: int
    checkpoint_final: bool
    target: str
    deployment: str | None
    gate: Gate
    recipe: Recipe
    task: TaskObject | None
    status: str
    progress: Progress | None
    error: Failure | None
    verdict: Verdict | None
    measurements: MeasurementsObject
    artifact: Content | None
    chosen: Annotated[
        Chosen | None, Field(description="What a search found, where the target is auto.")
    ] = None


class Report(BaseModel):
    """What was measured of a compression, and of its like."""

    object: Literal["compression.report"] = "compression.report"
    compression: Compression
    rows: list[Row]
    others: Annotated[
        list[Compression],
        Field(description="What else was measured of its checkpoint (or model), newest first."),
    ]


@ROUTER.post("", response_model=Compression)
async def create_compression(body: CreateCompression, caller: CallerOf) -> Compression:
    """Compress a checkpoint by hand. Deployments ask for theirs by themselves."""
    if not _CHECKPOINT.fullmatch(body.checkpoint):
        raise InvalidArgument(
            "'checkpoint' must look like runs/run-…/checkpoints/ckpt-… or jobs/…",
            field="checkpoint",
        )
    reference = await checkpoint_reference(caller.upstream, f"{caller.parent}/{body.checkpoint}")
    request = pb.CreateCompressionRequest(
        parent=caller.parent,
        checkpoint=reference,
        target=enum_value(pb.Target, body.target, "TARGET_"),  # type: ignore[arg-type]
        gate=pb.GatePolicy(**given(body.gate)) if body.gate else None,
        recipe=recipe_message(body.recipe),
        task=await task_message(body.task, caller) if body.task else None,
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.compressor.CreateCompression, request)
    return _compression(caller, response.compression)


@ROUTER.get("", response_model=ListObject[Compression])
async def list_compressions(
    caller: CallerOf,
    model: Annotated[str, Query(description="Only this model's.")] = "",
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    request = pb.ListCompressionsRequest(
        parent=caller.parent,
        page_size=page_size(limit),
        page_token=token_after(after),
        model=model,
    )
    response = await upstream.call(caller.upstream.compressor.ListCompressions, request)
    items = [_compression(caller, compression) for compression in response.compressions]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{compression_id}", response_model=Compression)
async def get_compression(compression_id: str, caller: CallerOf) -> Compression:
    name = caller.name("compressions", compression_id, "compression")
    request = pb.GetCompressionRequest(name=name)
    response = await upstream.call(caller.upstream.compressor.GetCompression, request)
    return _compression(caller, response.compression)


@ROUTER.get("/{compression_id}/report", response_model=Report)
async def get_compression_report(
    compression_id: str, caller: CallerOf, of: ReportOf = "checkpoint"
) -> Report:
    """What was measured, original beside artifact, and the other artifacts of the checkpoint."""
    found = await _report(caller, compression_id, of, with_plot=False)
    first, *others = [_compression(caller, each) for each in found.compressions]
    return Report(compression=first, rows=rows(first.measurements), others=others)


@ROUTER.get(
    "/{compression_id}/report.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}, "description": "The plot."}},
)
async def get_compression_plot(
    compression_id: str, caller: CallerOf, of: ReportOf = "checkpoint"
) -> Response:
    """Perplexity over size and over speed: the original and each artifact."""
    found = await _report(caller, compression_id, of, with_plot=True)
    return Response(found.plot, media_type="image/svg+xml")


async def _report(
    caller: Caller, compression_id: str, of: str, *, with_plot: bool
) -> pb.GetCompressionReportResponse:
    request = pb.GetCompressionReportRequest(
        name=caller.name("compressions", compression_id, "compression"),
        whole_model=of == "model",
        with_plot=with_plot,
    )
    return await upstream.call(caller.upstream.compressor.GetCompressionReport, request)


@ROUTER.post("/{compression_id}/cancel", response_model=Compression)
async def cancel_compression(compression_id: str, caller: CallerOf) -> Compression:
    name = caller.name("compressions", compression_id, "compression")
    request = pb.CancelCompressionRequest(name=name)
    response = await upstream.call(caller.upstream.compressor.CancelCompression, request)
    return _compression(caller, response.compression)


async def checkpoint_reference(services: upstream.Upstream, name: str) -> pb.CheckpointReference:
    """A checkpoint as its owner describes it: clients name it, and never where it lies.

    Raises:
        MillraceError: there is none of that name.
    """
    if "/runs/" in name:
        return await _trained(services, name)
    request = tuner_pb2.GetCheckpointRequest(name=name)
    tuned = (await upstream.call(services.tuner.GetCheckpoint, request)).checkpoint
    # A tuned checkpoint carries its own held-out examples.
    return pb.CheckpointReference(
        name=tuned.name,
        model=tuned.model,
        step=tuned.step,
        final=tuned.final,
        content=tuned.content,
        evaluation=tuned.content,
    )


async def _trained(services: upstream.Upstream, name: str) -> pb.CheckpointReference:
    request = trainer_pb2.GetCheckpointRequest(name=name)
    trained = (await upstream.call(services.trainer.GetCheckpoint, request)).checkpoint
    dataset = await upstream.call(
        services.data.GetDataset, data_pb2.GetDatasetRequest(name=trained.dataset)
    )
    return pb.CheckpointReference(
        name=trained.name,
        model=trained.model,
        step=trained.step,
        final=trained.final,
        content=trained.content,
        evaluation=dataset.dataset.content,
    )


def gate(message: pb.GatePolicy) -> Gate:
    return Gate(**{field.name: value for field, value in message.ListFields()})


def _compression(caller: Caller, message: pb.Compression) -> Compression:
    verdict = Verdict(passed=message.verdict.passed, reasons=list(message.verdict.reasons))
    return Compression(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        started_at=seconds_or_none(message, "start_time"),
        finished_at=seconds_or_none(message, "finish_time"),
        model=message.checkpoint.model,
        checkpoint=caller.relative(message.checkpoint.name),
        checkpoint_step=message.checkpoint.step,
        checkpoint_final=message.checkpoint.final,
        target=enum_word(pb.Target, message.target, "TARGET_"),
        deployment=identifier(message.deployment),
        gate=gate(message.gate),
        recipe=recipe(message.recipe),
        task=task(message.task) if message.HasField("task") else None,
        status=STATUS_OF_STATE[message.state],
        progress=progress(message.progress),
        error=failure(message.failure),
        verdict=verdict if message.HasField("verdict") else None,
        measurements=measurements(message.measurements),
        artifact=content(message.artifact),
        chosen=_chosen(message.chosen) if message.HasField("chosen") else None,
    )


def _chosen(message: pb.Chosen) -> Chosen:
    return Chosen(
        target=enum_word(pb.Target, message.target, "TARGET_"),
        recipe=recipe(message.recipe),
        layers_in_8_bits=message.layers_in_8_bits,
    )
