"""``/v1/files``: uploads, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/files
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

import grpc
from fastapi import Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from millrace.data.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    LARGEST_PAGE,
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import identifier, seconds
from millrace_runtime.errors import InvalidArgument

ROUTER = router("files", "/v1/files")

_CHUNK_BYTES = 2**20
_PURPOSES: dict[str, pb.FilePurpose.ValueType] = {
    "fine-tune": pb.FILE_PURPOSE_FINE_TUNE,
    "fine-tune-results": pb.FILE_PURPOSE_FINE_TUNE_RESULTS,
    "batch": pb.FILE_PURPOSE_BATCH,
    "batch_output": pb.FILE_PURPOSE_BATCH_OUTPUT,
    "user_data": pb.FILE_PURPOSE_USER_DATA,
}
_PURPOSE_WORDS: dict[int, str] = {value: word for word, value in _PURPOSES.items()}
_UPLOADABLE = ("fine-tune", "batch", "user_data")
_FORM_FIELDS = {"file", "purpose"}
_UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(_UPLOADABLE)},
                    },
                }
            }
        },
    }
}

Purpose = Literal["fine-tune", "fine-tune-results", "batch", "batch_output", "user_data"]


class FileObject(BaseModel):
    """An uploaded file. ``digest`` is the SHA-256 of its bytes."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    digest: str
    example_count: int


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_object(file: pb.File) -> FileObject:
    return FileObject(
        id=identifier(file.name) or "",
        bytes=file.content.size_bytes,
        created_at=seconds(file.create_time),
        filename=file.filename,
        purpose=_PURPOSE_WORDS[file.purpose],  # type: ignore[arg-type]
        digest=file.content.digest,
        example_count=file.example_count,
    )


@ROUTER.post("", response_model=FileObject, openapi_extra=_UPLOAD_FORM)
async def upload_file(request: Request, caller: CallerOf) -> FileObject:
    """Upload a file. One for fine-tuning is checked line by line before it is stored."""
    # Large parts are spooled to disk by the parser: memory stays bounded.
    async with request.form(max_files=1, max_fields=8) as form:
        file, purpose = _parts(form)
        requests = _upload(caller, file, purpose)
        try:
            response = await caller.upstream.data.UploadFile(requests)
        except grpc.RpcError as error:
            raise upstream.error_of(error) from error
    return file_object(response.file)


@ROUTER.get("", response_model=ListObject[FileObject])
async def list_files(
    caller: CallerOf,
    after: After = None,
    limit: Limit = LARGEST_PAGE,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    purpose: Annotated[Purpose | None, Query()] = None,
) -> dict[str, Any]:
    """List files, newest first unless asked otherwise."""
    if order == "asc":
        return await _oldest_first(caller, after, page_size(limit), purpose)
    response = await _page(caller, page_size(limit), token_after(after), purpose)
    items = [file_object(file) for file in response.files]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{file_id}", response_model=FileObject)
async def get_file(file_id: str, caller: CallerOf) -> FileObject:
    request = pb.GetFileRequest(name=caller.name("files", file_id, "File object"))
    response = await upstream.call(caller.upstream.data.GetFile, request)
    return file_object(response.file)


@ROUTER.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def get_file_content(file_id: str, caller: CallerOf) -> StreamingResponse:
    """The file's bytes, verified against its digest before the first is sent."""
    file = await get_file(file_id, caller)
    name = caller.name("files", file_id, "File object")
    chunks = upstream.stream(caller.upstream.data.ReadFile(pb.ReadFileRequest(name=name)))
    first = await anext(chunks, None)  # what cannot be read must fail before the headers go
    return StreamingResponse(
        _contents(first, chunks),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        },
    )


@ROUTER.delete("/{file_id}", response_model=FileDeleted)
async def delete_file(file_id: str, caller: CallerOf) -> FileDeleted:
    request = pb.DeleteFileRequest(name=caller.name("files", file_id, "File object"))
    await upstream.call(caller.upstream.data.DeleteFile, request)
    return FileDeleted(id=file_id)


def _parts(form: FormData) -> tuple[UploadFile, str]:
    unknown = sorted(set(form.keys()) - _FORM_FIELDS)
    if unknown:
        raise InvalidArgument(
            f"Unrecognized request argument supplied: {unknown[0]}",
            reason="UNKNOWN_PARAMETER",
            field=unknown[0],
        )
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile) or not file.filename:
        raise InvalidArgument(
            "'file' must be a file with a name, sent as multipart/form-data",
            reason="MISSING_REQUIRED_PARAMETER",
            field="file",
        )
    if purpose not in _UPLOADABLE:
        raise InvalidArgument(
            f"'purpose' must be one of {', '.join(_UPLOADABLE)}",
            reason="INVALID_VALUE",
            field="purpose",
        )
    return file, str(purpose)


async def _upload(
    caller: Caller, file: UploadFile, purpose: str
) -> AsyncIterator[pb.UploadFileRequest]:
    header = pb.UploadFileHeader(
        parent=caller.parent,
        filename=file.filename or "",
        purpose=_PURPOSES[purpose],
        request_id=caller.request_id,
        size_bytes=file.size,
    )
    yield pb.UploadFileRequest(header=header)
    while chunk := await file.read(_CHUNK_BYTES):
        yield pb.UploadFileRequest(chunk=chunk)


async def _page(
    caller: Caller, size: int, token: str, purpose: Purpose | None
) -> pb.ListFilesResponse:
    request = pb.ListFilesRequest(
        parent=caller.parent,
        page_size=size,
        page_token=token,
        purpose=_PURPOSES[purpose] if purpose else pb.FILE_PURPOSE_UNSPECIFIED,
    )
    return await upstream.call(caller.upstream.data.ListFiles, request)


async def _oldest_first(
    caller: Caller, after: str | None, size: int, purpose: Purpose | None
) -> dict[str, Any]:
    """The data service lists newest first, so all are read; ids sort by time of making."""
    token, files = "", list[pb.File]()
    while True:
        response = await _page(caller, LARGEST_PAGE, token, purpose)
        files += response.files
        token = response.next_page_token
        if not token:
            break
    items = [file_object(file) for file in reversed(files)]
    wanted = [item for item in items if not after or item.id > after]
    return page_of(wanted[:size], len(wanted) > size)


async def _contents(
    first: pb.ReadFileResponse | None, rest: AsyncIterator[pb.ReadFileResponse]
) -> AsyncIterator[bytes]:
    if first is not None:
        yield first.chunk
    async for response in rest:
        yield response.chunk
