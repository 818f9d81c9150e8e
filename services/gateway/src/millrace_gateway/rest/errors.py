"""Errors in the OpenAI API's shape, for everything that can go wrong.

``{"error": {"message", "type", "param", "code"}}``; ``code`` is the reason in lower case.
Reference: https://platform.openai.com/docs/guides/error-codes
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from millrace_gateway.limits import RateLimited
from millrace_runtime import storage
from millrace_runtime.errors import MillraceError

LOG = logging.getLogger(__name__)

STATUS_OF: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TYPES: Mapping[int, str] = {
    403: "permission_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
    507: "server_error",
}
_RETRY_AFTER_SECONDS = "1"
# AIP's name of the field that names the resource; in REST it is in the path.
_PATH_FIELDS = ("name", "parent")
_KIND_WORDS: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


class ErrorBody(BaseModel):
    """What was wrong, where, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


def document(error: MillraceError) -> dict[str, Any]:
    """The body that says all that ``error`` says."""
    status = status_of(error)
    param = error.field if error.field and error.field not in _PATH_FIELDS else None
    found = body(status, str(error), code=error.reason.lower(), param=param)
    if isinstance(error, RateLimited):
        found["error"]["type"] = error.kind
    return found


def body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: MillraceError) -> Response:
    """The HTTP answer that ``error`` becomes."""
    if isinstance(error, RateLimited):
        content = orjson.dumps(document(error))
        return Response(content, status_of(error), error.headers(), "application/json")
    return answer(status_of(error), document(error))


def status_of(error: MillraceError) -> int:
    """The HTTP status that says what ``error`` says; a full disk is nobody's quota."""
    if error.reason == storage.FULL:
        return 507
    return STATUS_OF.get(error.code, 500)


def answer(status: int, content: dict[str, Any]) -> Response:
    headers = {"retry-after": _RETRY_AFTER_SECONDS} if status in (429, 503, 507) else {}
    if status == 504:
        # Clients of OpenAI's would ask again, for an answer that nobody waits for any more.
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(content), status, headers, "application/json")


def internal() -> Response:
    """The answer when something failed that nobody expected; its log says what."""
    message = "The server had an error while processing your request; its log says more."
    return answer(500, body(500, message, code="internal"))


def install(app: FastAPI) -> None:
    """Make the application answer all its errors in this shape."""
    app.add_exception_handler(MillraceError, _on_millrace_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)


async def _on_millrace_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MillraceError)
    return response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path}"
        return answer(404, body(404, message, code="unknown_url"))
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}"
        return answer(405, body(405, message, code="method_not_allowed"))
    code = "request_too_large" if error.status_code == 413 else None
    return answer(error.status_code, body(error.status_code, str(error.detail), code=code))


async def _on_fault(request: Request, error: Exception) -> Response:
    if said := storage.answer_of(error):
        LOG.warning("%s %s: %s", request.method, request.url.path, error)
        return response(said)
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return internal()


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = _most_telling(error.errors())
    place = first["loc"][0] if first["loc"] else "body"
    root = error.body if place == "body" else None
    param = parameter(first["loc"][1:], root)
    message, code = _explain(first, param)
    return answer(400, body(400, message, code=code, param=param or None))


def parameter(location: Sequence[str | int], root: Any) -> str:
    """A place in a body as clients write it: ``messages[0].content``.

    Pydantic mixes names of union members into its locations; they are told from keys by
    walking along the body itself.
    """
    path, here = "", root
    for index, step in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(step, int):
            path += f"[{step}]"
            here = here[step] if isinstance(here, list) and step < len(here) else None
        elif isinstance(here, dict) and step in here:
            path += f".{step}" if path else step
            here = here[step]
        elif is_last and (isinstance(here, dict) or not path):
            path += f".{step}" if path else str(step)
    return path


def _most_telling(errors: Sequence[Any]) -> Any:
    """An unknown field before the rest; of a union's members the one that came furthest."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    return unknown[0] if unknown else max(errors, key=lambda error: len(error["loc"]))


def _explain(error: Any, param: str) -> tuple[str, str | None]:
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"Unrecognized request argument supplied: {param}", "unknown_parameter"
    if kind == "missing":
        where = f"'{param}'" if param else "a JSON body"
        return f"Missing required parameter: {where}.", "missing_required_parameter"
    if kind == "json_invalid":
        return "We could not parse the JSON body of your request.", "invalid_json"
    if kind in _KIND_WORDS:
        where = f"'{param}'" if param else "the body"
        return f"Invalid type for {where}: expected {_KIND_WORDS[kind]}.", "invalid_type"
    return f"Invalid value for '{param}': {error['msg']}.", "invalid_value"
