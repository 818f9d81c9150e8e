"""``/v1/files``: uploads, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/files
"""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

import grpc
from fastapi import Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
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
from millrace_gateway.rest.shapes import RequestBody, identifier, seconds, seconds_or_none
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
_REFUSED: Mapping[str, str] = {
    "assistants": "there is no Assistants API here",
    "evals": "there is no Evals API here",
    "vision": "models here read text only",
}
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FORM_FIELDS = {"file", "purpose", _ANCHOR, _SECONDS}
_DIGITS = re.compile(r"[0-9]{1,9}")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 3600, 2_592_000
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
                        _ANCHOR: {"type": "string", "enum": ["created_at"]},
                        _SECONDS: {
                            "type": "integer",
                            "minimum": _SHORTEST_SECONDS,
                            "maximum": _LONGEST_SECONDS,
                        },
                    },
                }
            }
        },
    }
}

Purpose = Literal["fine-tune", "fine-tune-results", "batch", "batch_output", "user_data"]


class ExpiresAfter(RequestBody):
    """How long a file is kept: so many seconds from its making."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=_SHORTEST_SECONDS, le=_LONGEST_SECONDS)]


class ExampleReport(BaseModel):
    """What a file for fine-tuning was found to hold.

    ``estimated_token_count`` takes 4 bytes for a token and 4 tokens for each message's marks;
    ``unused_fields`` are those that rows have and the format has no use for.
    """

    format: str
    kind: str
    message_count: int
    character_count: int
    estimated_token_count: int
    longest_line: int
    longest_estimated_token_count: int
    unused_fields: list[str]


class FileObject(BaseModel):
    """An uploaded file. ``digest`` is the SHA-256 of its bytes.

    It was checked before it was made, so that its ``status`` is always the same.
    """

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    digest: str
    example_count: int
    examples: ExampleReport | None = None


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
        purpose=purpose_word(file.purpose),  # type: ignore[arg-type]
        expires_at=seconds_or_none(file, "expire_time"),
        digest=file.content.digest,
        example_count=file.example_count,
        examples=_example_report(file.report) if file.HasField("report") else None,
    )


def _example_report(report: pb.ExampleReport) -> ExampleReport:
    return ExampleReport(
        format=report.format,
        kind=report.kind,
        message_count=report.message_count,
        character_count=report.character_count,
        estimated_token_count=report.estimated_token_count,
        longest_line=report.longest_line,
        longest_estimated_token_count=report.longest_estimated_token_count,
        unused_fields=list(report.unused_fields),
    )


def purpose_word(purpose: int) -> str:
    return _PURPOSE_WORDS[purpose]


def uploadable(purpose: object) -> pb.FilePurpose.ValueType:
    """What a client may upload for.

    Raises:
        InvalidArgument: another purpose; one of OpenAI's is refused with the reason.
    """
    if isinstance(purpose, str) and purpose in _UPLOADABLE:
        return _PURPOSES[purpose]
    allowed = f"'purpose' must be one of {', '.join(_UPLOADABLE)}"
    reason = _REFUSED.get(purpose) if isinstance(purpose, str) else None
    message = f"{allowed}; {purpose!r} is not supported: {reason}" if reason else allowed
    raise InvalidArgument(
        message, reason="UNSUPPORTED_VALUE" if reason else "INVALID_VALUE", field="purpose"
    )


@ROUTER.post("", response_model=FileObject, openapi_extra=_UPLOAD_FORM)
async def upload_file(request: Request, caller: CallerOf) -> FileObject:
    """Upload a file. One for fine-tuning is checked line by line before it is stored."""
    # Large parts are spooled to disk by the parser: memory stays bounded.
    async with request.form(max_files=1, max_fields=8) as form:
        requests = _upload(caller, _header(caller, form), _file(form))
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
    request = pb.ListFilesRequest(
        parent=caller.parent,
        page_size=page_size(limit),
        page_token=token_after(after),
        purpose=_PURPOSES[purpose] if purpose else pb.FILE_PURPOSE_UNSPECIFIED,
        oldest_first=order == "asc",
    )
    response = await upstream.call(caller.upstream.data.ListFiles, request)
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


def _header(caller: Caller, form: FormData) -> pb.UploadFileHeader:
    unknown = sorted(set(form.keys()) - _FORM_FIELDS)
    if unknown:
        raise InvalidArgument(
            f"Unrecognized request argument supplied: {unknown[0]}",
            reason="UNKNOWN_PARAMETER",
            field=unknown[0],
        )
    file = _file(form)
    return pb.UploadFileHeader(
        parent=caller.parent,
        filename=file.filename or "",
        purpose=uploadable(form.get("purpose")),
        request_id=caller.request_id,
        size_bytes=file.size,
        expire_after_seconds=_expire_seconds(form),
    )


def _file(form: FormData) -> UploadFile:
    return form_file(form, "file")


def form_file(form: FormData, field: str) -> UploadFile:
    """
    Raises:
        InvalidArgument: the form has no such file.
    """
    file = form.get(field)
    if not isinstance(file, UploadFile) or not file.filename:
        raise InvalidArgument(
            f"'{field}' must be a file with a name, sent as multipart/form-data",
            reason="MISSING_REQUIRED_PARAMETER",
            field=field,
        )
    return file


def _expire_seconds(form: FormData) -> int:
    """0 when the form does not say it. The ``openai`` package writes objects with brackets."""
    anchor, seconds = form.get(_ANCHOR), form.get(_SECONDS)
    if anchor is None and seconds is None:
        return 0
    if anchor != "created_at":
        raise _wrong("expires_after.anchor", "must be 'created_at'")
    is_number = isinstance(seconds, str) and _DIGITS.fullmatch(seconds) is not None
    number = int(str(seconds)) if is_number else 0
    if not _SHORTEST_SECONDS <= number <= _LONGEST_SECONDS:
        raise _wrong(
            "expires_after.seconds",
            f"must be a whole number from {_SHORTEST_SECONDS} to {_LONGEST_SECONDS}",
        )
    return number


def _wrong(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"'{field}' {message}", reason="INVALID_VALUE", field=field)


async def _upload(
    caller: Caller, header: pb.UploadFileHeader, file: UploadFile
) -> AsyncIterator[pb.UploadFileRequest]:
    yield pb.UploadFileRequest(header=header)
    async for chunk in file_chunks(file):
        yield pb.UploadFileRequest(chunk=chunk)


async def file_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    """A form's file, as large at a time as the services take it."""
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


async def _contents(
    first: pb.ReadFileResponse | None, rest: AsyncIterator[pb.ReadFileResponse]
) -> AsyncIterator[bytes]:
    if first is not None:
        yield first.chunk
    async for response in rest:
        yield response.chunk
