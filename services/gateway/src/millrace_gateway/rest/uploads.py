"""``/v1/uploads``: large files in parts, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/uploads
"""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

import grpc
from fastapi import Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from millrace.data.v1 import uploads_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.files import (
    ExpiresAfter,
    FileObject,
    file_chunks,
    file_object,
    form_file,
    purpose_word,
    uploadable,
)
from millrace_gateway.rest.listing import After, Limit, ListObject, page_of, page_size, token_after
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import Int64, RequestBody, identifier, seconds
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("uploads", "/v1/uploads")

Status = Literal["pending", "completed", "cancelled", "expired"]
_STATUS: Mapping[int, Status] = {
    pb.UPLOAD_STATE_PENDING: "pending",
    pb.UPLOAD_STATE_COMPLETED: "completed",
    pb.UPLOAD_STATE_CANCELLED: "cancelled",
    pb.UPLOAD_STATE_EXPIRED: "expired",
}
# How the API calls the fields of the services' requests.
_FIELDS = {"size_bytes": "bytes", "expire_after_seconds": "expires_after.seconds"}
_PART_FIELDS = {"part": "data"}
_PART_PAGE = 100
_PART_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "additionalProperties": False,
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class UploadRequest(RequestBody):
    """``mime_type`` is kept and shown; what a file may hold is decided by its content."""

    bytes: Int64
    filename: str
    mime_type: str
    purpose: str
    expires_after: ExpiresAfter | None = None


class CompleteRequest(RequestBody):
    """The parts in the order of the file; ``md5`` of the whole, in hexadecimal, is checked."""

    part_ids: Annotated[list[str], Field(min_length=1)]
    md5: str | None = None


class UploadObject(BaseModel):
    """A file that comes in parts. ``file`` is set once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    mime_type: str
    purpose: str
    status: Status
    file: FileObject | None


class PartObject(BaseModel):
    """A part of an upload. ``digest`` is the SHA-256 of its bytes."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    digest: str


def upload_object(upload: pb.Upload) -> UploadObject:
    return UploadObject(
        id=identifier(upload.name) or "",
        bytes=upload.size_bytes,
        created_at=seconds(upload.create_time),
        expires_at=seconds(upload.expire_time),
        filename=upload.filename,
        mime_type=upload.mime_type,
        purpose=purpose_word(upload.purpose),
        status=_STATUS[upload.state],
        file=file_object(upload.file) if upload.HasField("file") else None,
    )


def part_object(part: pb.UploadPart) -> PartObject:
    variables = names.parse("tenants/{tenant}/uploads/{upload}/parts/{part}", part.name)
    return PartObject(
        id=variables["part"],
        created_at=seconds(part.create_time),
        upload_id=variables["upload"],
        bytes=part.content.size_bytes,
        digest=part.content.digest,
    )


@ROUTER.post("", response_model=UploadObject)
async def create_upload(body: UploadRequest, caller: CallerOf) -> UploadObject:
    """Announce a file that comes in parts; it must be complete within an hour."""
    request = pb.CreateUploadRequest(
        parent=caller.parent,
        filename=body.filename,
        purpose=uploadable(body.purpose),
        mime_type=body.mime_type,
        size_bytes=body.bytes,
        expire_after_seconds=body.expires_after.seconds if body.expires_after else 0,
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.uploads.CreateUpload, request, _FIELDS)
    return upload_object(response.upload)


@ROUTER.get("/{upload_id}", response_model=UploadObject)
async def get_upload(upload_id: str, caller: CallerOf) -> UploadObject:
    request = pb.GetUploadRequest(name=_name(caller, upload_id))
    response = await upstream.call(caller.upstream.uploads.GetUpload, request)
    return upload_object(response.upload)


@ROUTER.post("/{upload_id}/parts", response_model=PartObject, openapi_extra=_PART_FORM)
async def add_part(upload_id: str, request: Request, caller: CallerOf) -> PartObject:
    """Add a part of at most 64 MiB; once it is answered it is kept."""
    name = _name(caller, upload_id)
    async with request.form(max_files=1, max_fields=1) as form:
        unknown = sorted(set(form.keys()) - {"data"})
        if unknown:
            raise InvalidArgument(
                f"Unrecognized request argument supplied: {unknown[0]}",
                reason="UNKNOWN_PARAMETER",
                field=unknown[0],
            )
        requests = _part(caller, name, form_file(form, "data"))
        try:
            response = await caller.upstream.uploads.AddUploadPart(requests)
        except grpc.RpcError as error:
            raise upstream.renamed(upstream.error_of(error), _PART_FIELDS) from error
    return part_object(response.part)


@ROUTER.get("/{upload_id}/parts", response_model=ListObject[PartObject])
async def list_parts(
    upload_id: str, caller: CallerOf, after: After = None, limit: Limit = _PART_PAGE
) -> dict[str, Any]:
    """List the parts that are there, newest first: what need not be sent again."""
    request = pb.ListUploadPartsRequest(
        parent=_name(caller, upload_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.uploads.ListUploadParts, request)
    items = [part_object(part) for part in response.parts]
    return page_of(items, bool(response.next_page_token))


@ROUTER.post("/{upload_id}/complete", response_model=UploadObject)
async def complete_upload(upload_id: str, body: CompleteRequest, caller: CallerOf) -> UploadObject:
    """Join the parts to a file, which is checked as any other. Doing it twice is once."""
    request = pb.CompleteUploadRequest(
        name=_name(caller, upload_id), part_ids=body.part_ids, md5=body.md5 or ""
    )
    response = await upstream.call(caller.upstream.uploads.CompleteUpload, request)
    return upload_object(response.upload)


@ROUTER.post("/{upload_id}/cancel", response_model=UploadObject)
async def cancel_upload(upload_id: str, caller: CallerOf) -> UploadObject:
    request = pb.CancelUploadRequest(name=_name(caller, upload_id))
    response = await upstream.call(caller.upstream.uploads.CancelUpload, request)
    return upload_object(response.upload)


def _name(caller: Caller, upload_id: str) -> str:
    return caller.name("uploads", upload_id, "Upload")


async def _part(
    caller: Caller, upload: str, data: UploadFile
) -> AsyncIterator[pb.AddUploadPartRequest]:
    header = pb.AddUploadPartHeader(
        parent=upload, request_id=caller.request_id, size_bytes=data.size
    )
    yield pb.AddUploadPartRequest(header=header)
    async for chunk in file_chunks(data):
        yield pb.AddUploadPartRequest(chunk=chunk)
