"""``/v1/batches``: many requests in one file, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/batch
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from millrace.data.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.batches.domain import COMPLETION_WINDOW, Batch, Order, Status
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
from millrace_gateway.rest.shapes import Id, Metadata, RequestBody
from millrace_runtime.errors import InvalidArgument, NotFound

ROUTER = router("batches", "/v1/batches")

_MAXIMUM_FILE_BYTES = 200 * 2**20  # as OpenAI's

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
StatusWord = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class CreateBatch(RequestBody):
    input_file_id: Id
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    # Not supported: files stay until they are deleted.
    output_expires_after: None = None


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchErrorObject(BaseModel):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str = COMPLETION_WINDOW
    status: StatusWord
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


@ROUTER.post("", response_model=BatchObject)
async def create_batch(body: CreateBatch, caller: CallerOf) -> BatchObject:
    """Let a file's requests be answered when there is room, within 24 hours.

    They are carried out with this key, at low priority.
    """
    await _check_input(caller, body.input_file_id)
    order = Order(
        caller.tenant,
        caller.principal.key_id,
        body.endpoint,
        body.input_file_id,
        body.metadata,
    )
    return batch_object(await caller.gateway.batches.create(order, caller.request_id))


@ROUTER.get("", response_model=ListObject[BatchObject])
async def list_batches(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """Batches, newest first."""
    found, has_more = await caller.gateway.batches.page(
        caller.tenant, page_size(limit), token_after(after)
    )
    return page_of([batch_object(batch) for batch in found], has_more)


@ROUTER.get("/{batch_id}", response_model=BatchObject)
async def get_batch(batch_id: str, caller: CallerOf) -> BatchObject:
    caller.name("batches", batch_id, "batch")
    return batch_object(await caller.gateway.batches.get(caller.tenant, batch_id))


@ROUTER.post("/{batch_id}/cancel", response_model=BatchObject)
async def cancel_batch(batch_id: str, caller: CallerOf) -> BatchObject:
    """Ask no more lines; those that were answered are in the output file."""
    caller.name("batches", batch_id, "batch")
    return batch_object(await caller.gateway.batches.cancel(caller.tenant, batch_id))


def batch_object(batch: Batch) -> BatchObject:
    order, usage = batch.order, batch.usage
    return BatchObject(
        id=batch.id,
        endpoint=order.endpoint,
        model=batch.model,
        errors=_errors(batch),
        input_file_id=order.input_file_id,
        status=batch.status.value,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.create_time.timestamp()),
        in_progress_at=_seconds(batch.start_time),
        expires_at=int(batch.expire_time.timestamp()),
        finalizing_at=_seconds(batch.finalize_time),
        completed_at=_end(batch, Status.COMPLETED),
        failed_at=_end(batch, Status.FAILED),
        expired_at=_end(batch, Status.EXPIRED),
        cancelling_at=_seconds(batch.cancel_time),
        cancelled_at=_end(batch, Status.CANCELLED),
        request_counts=RequestCounts(
            total=batch.total, completed=batch.completed, failed=batch.failed
        ),
        usage=BatchUsage(
            input_tokens=usage.input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
            total_tokens=usage.input_tokens + usage.output_tokens,
        ),
        metadata=dict(order.metadata) if order.metadata else None,
    )


async def _check_input(caller: Caller, file_id: str) -> None:
    """Refuse what is no input of a batch at once; its lines are read later.

    Raises:
        InvalidArgument: there is no such file, it is for something else, or it is too large.
    """
    request = pb.GetFileRequest(name=f"{caller.parent}/files/{file_id}")
    try:
        file = (await upstream.call(caller.upstream.data.GetFile, request)).file
    except NotFound:
        raise _wrong_input(f"there is no file {file_id!r}") from None
    if file.purpose != pb.FILE_PURPOSE_BATCH:
        raise _wrong_input(f"the file {file_id!r} was not uploaded for the purpose 'batch'")
    if file.content.size_bytes > _MAXIMUM_FILE_BYTES:
        raise _wrong_input(f"a batch's input may have {_MAXIMUM_FILE_BYTES} bytes")


def _wrong_input(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="INVALID_VALUE", field="input_file_id")


def _errors(batch: Batch) -> BatchErrors | None:
    found: Sequence[BatchErrorObject] = [
        BatchErrorObject(code=one.code, message=one.message, line=one.line, param=one.param)
        for one in batch.errors
    ]
    return BatchErrors(data=list(found)) if found else None


def _end(batch: Batch, status: Status) -> int | None:
    return _seconds(batch.finish_time) if batch.status is status else None


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
