"""``/v2``: the Open Inference Protocol, with Triton's extensions that need no control of it.

References: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/
inference_rest.md and https://github.com/triton-inference-server/server/tree/r24.10/docs/protocol
(binary data, generate, statistics, model configuration). The protocol has an OpenAPI document of
its own, so that these paths are not in ours.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from millrace_gateway.inference import EXTENSIONS, Asked, check_request, reference
from millrace_gateway.placement import Place
from millrace_gateway.rest import tensors, text_tensors
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.deadlines import end_of
from millrace_gateway.rest.generations import while_connected
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.tensors import InferenceBody, plain
from millrace_gateway.rest.text_tensors import GenerateBody
from millrace_runtime.errors import InvalidArgument, MillraceError, PermissionDenied, Unavailable

ROUTER = router("inference", prefix="/v2")

_HEADER_LENGTH = "inference-header-content-length"
# From this size on a body is read in a thread: other answers must not wait for it.
_LARGE_BYTES = 64 * 2**10
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_EVERY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE"]

_Body = TypeVar("_Body", bound=BaseModel)
_Result = TypeVar("_Result")


def _model(request: Request) -> str:
    path = request.path_params
    return reference(path["model"], path.get("version", ""))


ModelOf = Annotated[str, Depends(_model)]


@ROUTER.get("", include_in_schema=False)
async def server_metadata(request: Request) -> Response:
    """What this server is, and which extensions it knows."""
    document = {"name": "millrace", "version": request.app.version, "extensions": EXTENSIONS}
    return _json(document)


@ROUTER.get("/health/live", include_in_schema=False)
async def server_live() -> Response:
    return _json({"live": True})


@ROUTER.get("/health/ready", include_in_schema=False)
async def server_ready(caller: CallerOf) -> Response:
    """Whether requests should be sent here; 400 says no, as the protocol has it."""
    gateway = caller.gateway
    ready = gateway.inference.is_ready and not gateway.draining.is_set()
    return _json({"ready": ready, "live": True}, 200 if ready else 400)


@ROUTER.get("/models/stats", include_in_schema=False)
async def all_statistics(caller: CallerOf) -> Response:
    return await _statistics(caller, "")


@ROUTER.get("/models/{model}", include_in_schema=False)
@ROUTER.get("/models/{model}/versions/{version}", include_in_schema=False)
async def model_metadata(caller: CallerOf, model: ModelOf) -> Response:
    """A version's inputs and outputs."""
    metadata = await caller.gateway.inference.metadata(caller.tenant, model)
    return _json(plain(metadata))


@ROUTER.get("/models/{model}/ready", include_in_schema=False)
@ROUTER.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(caller: CallerOf, model: ModelOf) -> Response:
    """Whether a version answers; 400 says not yet, 404 that there is none."""
    try:
        caller.gateway.inference.check_ready(caller.tenant, model)
    except Unavailable:
        return _json({"name": model, "ready": False}, 400)
    return _json({"name": model, "ready": True})


@ROUTER.get("/models/{model}/config", include_in_schema=False)
@ROUTER.get("/models/{model}/versions/{version}/config", include_in_schema=False)
async def model_config(caller: CallerOf, model: ModelOf) -> Response:
    """A version's configuration in Triton; it can only be read."""
    response = await caller.gateway.inference.config(caller.tenant, model)
    return _json(plain(response.config))


@ROUTER.get("/models/{model}/stats", include_in_schema=False)
@ROUTER.get("/models/{model}/versions/{version}/stats", include_in_schema=False)
async def model_statistics(caller: CallerOf, model: ModelOf) -> Response:
    return await _statistics(caller, model)


@ROUTER.post("/models/{model}/infer", include_in_schema=False)
@ROUTER.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, caller: CallerOf, model: ModelOf) -> Response:
    """Ask a model that answers at once; tensors are JSON, or binary behind it."""
    content = await _content(request, caller)
    header_length = request.headers.get(_HEADER_LENGTH)

    def read() -> tuple[Any, tensors.Form]:
        header, binary = tensors.split(content, header_length)
        body = _parsed(InferenceBody, header)
        _check_name(body, model)
        check_request(body)
        return tensors.request_message(body, binary), tensors.form(body)

    message, wanted = await _aside(len(content), read)
    asked = _asked(caller, model, message, end_of(request))
    response = await while_connected(request, caller.gateway.inference.infer(asked))
    if response is None:
        return Response(status_code=499)
    size = response.ByteSize()
    body, json_length = await _aside(size, lambda: tensors.response_body(response, wanted))
    if json_length is None:
        return Response(body, headers=_headers(response), media_type="application/json")
    headers = {**_headers(response), _HEADER_LENGTH: str(json_length)}
    return Response(body, headers=headers, media_type="application/octet-stream")


@ROUTER.post("/models/{model}/generate", include_in_schema=False)
@ROUTER.post("/models/{model}/versions/{version}/generate", include_in_schema=False)
async def generate(request: Request, caller: CallerOf, model: ModelOf) -> Response:
    """Ask with flat JSON, and get the whole answer."""
    body = _parsed(GenerateBody, await _content(request, caller))
    answers = _answers(caller, model, body, end_of(request))
    found = await while_connected(request, _collected(answers))
    if found is None:
        return Response(status_code=499)
    said = text_tensors.joined([text_tensors.answer(response, body) for response in found])
    return _json(said, headers=_headers(found[-1]))


@ROUTER.post("/models/{model}/generate_stream", include_in_schema=False)
@ROUTER.post("/models/{model}/versions/{version}/generate_stream", include_in_schema=False)
async def generate_stream(request: Request, caller: CallerOf, model: ModelOf) -> Response:
    """Ask with flat JSON; each part of the answer is a server-sent event."""
    body = _parsed(GenerateBody, await _content(request, caller))
    responses = _answers(caller, model, body, end_of(request))
    first = await while_connected(request, _first(responses))
    if first is None:
        await responses.aclose()
        return Response(status_code=499)
    return _EventStream(first, responses, body)


@ROUTER.api_route("/repository/{path:path}", methods=_EVERY_METHOD, include_in_schema=False)
@ROUTER.api_route("/systemsharedmemory/{path:path}", methods=_EVERY_METHOD, include_in_schema=False)
@ROUTER.api_route("/cudasharedmemory/{path:path}", methods=_EVERY_METHOD, include_in_schema=False)
@ROUTER.api_route("/trace/{path:path}", methods=_EVERY_METHOD, include_in_schema=False)
@ROUTER.api_route("/models/{model}/trace/setting", methods=_EVERY_METHOD, include_in_schema=False)
@ROUTER.api_route("/logging", methods=_EVERY_METHOD, include_in_schema=False)
async def refuse() -> Response:
    """What controls the server is not for its clients."""
    raise PermissionDenied(
        "models are loaded and unloaded by deployments (/v1/deployments) alone; shared memory, "
        "tracing and logging cannot be set by clients",
        reason="NOT_OFFERED",
    )


class _EventStream(StreamingResponse):
    """Parts of an answer as server-sent events; what fails on the way is said in the last."""

    def __init__(
        self, first: Sequence[Any], rest: AsyncGenerator[Any, None], body: GenerateBody
    ) -> None:
        headers = _headers(first[0]) if first else {}
        super().__init__(
            _events(first, rest, body),
            headers={**headers, "cache-control": "no-cache"},
            media_type="text/event-stream",
        )
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A client may be gone before the first event was asked for; then nobody else would.
            await self._rest.aclose()


async def _events(
    first: Sequence[Any], rest: AsyncGenerator[Any, None], body: GenerateBody
) -> AsyncGenerator[bytes, None]:
    try:
        for response in first:
            yield _event(text_tensors.answer(response, body))
        async for response in rest:
            yield _event(text_tensors.answer(response, body))
    except MillraceError as error:
        yield _event({"error": str(error)})


async def _first(responses: AsyncGenerator[Any, None]) -> Sequence[Any]:
    """The first response by itself; nothing when there is none."""
    try:
        return [await anext(responses)]
    except StopAsyncIteration:
        return []


async def _collected(responses: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(responses):
        found = [response async for response in responses]
    if not found:
        raise Unavailable("the model ended without an answer", reason="ENGINE_FAILED")
    return found


async def _statistics(caller: Caller, model: str) -> Response:
    entries = await caller.gateway.inference.statistics(caller.tenant, model)
    return _json({"model_stats": [plain(entry) for entry in entries]})


def _asked(caller: Caller, model: str, message: Any, ends_by: float | None) -> Asked:
    async def question(_place: Place) -> Any:
        return message

    return Asked(caller.principal, model, question, is_stream=False, ends_by=ends_by)


def _answers(
    caller: Caller, model: str, body: GenerateBody, ends_by: float | None
) -> AsyncGenerator[Any, None]:
    inference = caller.gateway.inference

    async def question(place: Place) -> Any:
        message = text_tensors.request_message(body, await inference.engine.metadata(place))
        check_request(message)
        return message

    asked = Asked(caller.principal, model, question, is_stream=True, ends_by=ends_by)
    return inference.answers(asked)


def _check_name(body: InferenceBody, model: str) -> None:
    if body.model_name not in (None, model, model.partition("@")[0]):
        raise InvalidArgument(
            f"the URL names {model!r}, and the body {body.model_name!r}", field="model_name"
        )


async def _content(request: Request, caller: Caller) -> bytes:
    """The body; one that was sent compressed may not be larger than another.

    Raises:
        InvalidArgument: it cannot be decompressed.
        HTTPException: it is too large.
    """
    content = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return content
    limit = caller.gateway.maximum_body_bytes
    return await asyncio.to_thread(_decompressed, content, encoding, limit)


def _decompressed(content: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in _ENCODINGS:
        raise InvalidArgument(f"Content-Encoding {encoding!r} is not known; use gzip or deflate")
    reader = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        found = reader.decompress(content, limit + 1)
    except zlib.error as error:
        raise InvalidArgument(f"the body is no {encoding}: {error}") from error
    if len(found) > limit:
        raise HTTPException(413, f"the request's body is larger than {limit} bytes")
    if not reader.eof:
        raise InvalidArgument(f"the body is no {encoding}: it breaks off")
    return found


def _parsed(kind: type[_Body], content: bytes) -> _Body:
    """The body of a request.

    Raises:
        RequestValidationError: as for every other request of the REST API.
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body",), "msg": str(error), "input": {}}]
        ) from error
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = [
            {**mistake, "loc": ("body", *mistake["loc"])}
            for mistake in error.errors(include_url=False, include_context=False)
        ]
        raise RequestValidationError(found, body=document) from error


async def _aside(size: int, work: Callable[[], _Result]) -> _Result:
    """``work`` done, in a thread when it is large."""
    return await asyncio.to_thread(work) if size >= _LARGE_BYTES else work()


def _headers(response: Any) -> dict[str, str]:
    return {"x-millrace-version": f"{response.model_name}@{response.model_version}"}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")
