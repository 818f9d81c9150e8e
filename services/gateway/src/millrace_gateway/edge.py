"""What happens around every REST request, outside the handlers, as plain ASGI.

In this order: a server span continues the client's trace, the key is asked for (only the paths
in ``OPEN_PATHS`` need none), the body's size is bounded, the handler runs, and the request is
counted and timed. What nobody expected is logged and answered in the API's own error shape.

While the gateway drains every answer closes its connection: the client's next request goes to
whoever follows. What is not answered by the end of the drain is, with an error.
"""

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Response
from opentelemetry.trace import Span, SpanKind, StatusCode
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace_gateway.app import KeyRing, bearer
from millrace_gateway.limits import Allowance, Limiter
from millrace_gateway.rest import errors
from millrace_runtime import names, telemetry
from millrace_runtime.errors import MillraceError, Unavailable

LOG = logging.getLogger(__name__)

OPEN_PATHS = frozenset(("/livez", "/readyz", "/metrics", "/openapi.json", "/docs"))
_UPLOAD_PATH = "/v1/files"
_PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
_PART_BYTES = 64 * 2**20
_ARTIFACTS_PATH = "/mlflow/api/2.0/mlflow-artifacts/artifacts/"
# Whose answers say what the key has left.
_GENERATION_PATHS = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
)

_REQUESTS = Counter(
    "millrace_http_server_requests_total", "REST requests.", ["method", "route", "status"]
)
_SECONDS = Histogram(
    "millrace_http_server_duration_seconds",
    "Time to answer a REST request, a stream's to its end.",
    ["method", "route"],
)
_METHODS = frozenset(("GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"))


@dataclass(frozen=True)
class Limits:
    """The largest request body, and the largest file that an upload may carry beside."""

    body_bytes: int
    file_bytes: int


class Edge:
    """The outermost middleware."""

    def __init__(
        self,
        app: ASGIApp,
        key_ring: KeyRing,
        limits: Limits,
        limiter: Limiter,
        draining: asyncio.Event,
    ) -> None:
        self._app = app
        self._key_ring = key_ring
        self._limits = limits
        self._limiter = limiter
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _closing_when(self._draining, send)
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        started = time.perf_counter()
        with telemetry.span(
            method,
            traceparent=headers.get("traceparent", ""),
            kind=SpanKind.SERVER,
            attributes=_attributes(scope, headers, method),
        ) as span:
            exchange = _Exchange(send, span)
            await self._answer(scope, headers, receive, exchange)
            _conclude(scope, span, method, exchange.status, time.perf_counter() - started)

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, exchange: "_Exchange"
    ) -> None:
        try:
            secret = bearer(headers.get("authorization", ""))
            principal = await self._key_ring.authenticate(secret)
            scope.setdefault("state", {})["principal"] = principal
            exchange.span.set_attribute("millrace.tenant", principal.tenant)
            if scope["path"] in _GENERATION_PATHS:
                exchange.allowance = self._limiter.of(principal)
            await self._app(scope, self._bounded(scope, receive), exchange.send)
        except MillraceError as error:
            await exchange.reply(scope, receive, errors.response(error))
        except asyncio.CancelledError:
            if self._draining.is_set():
                await exchange.reply(scope, receive, errors.response(restarting()))
            raise
        except Exception as error:  # a fault of ours, said in the client's own shape
            if not exchange.status:  # else it came from a handler, and is logged
                LOG.exception("%s %s failed", scope["method"], scope["path"])
            exchange.span.record_exception(error)
            await exchange.reply(scope, receive, errors.internal())

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """``receive``, refusing more than the limit: what is sent counts, not what is said."""
        limit = self._limits.body_bytes
        if scope["method"] == "POST" and scope["path"] == _UPLOAD_PATH:
            limit += self._limits.file_bytes  # a form is a little larger than the file in it
        elif scope["method"] == "POST" and _PART_PATH.fullmatch(scope["path"]):
            limit += min(_PART_BYTES, self._limits.file_bytes)
        elif scope["method"] == "PUT" and scope["path"].startswith(_ARTIFACTS_PATH):
            limit = self._limits.file_bytes  # which is the body, and nothing else
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"the request's body is larger than {limit} bytes")
            return message

        return bounded


def restarting() -> Unavailable:
    """What a request is told that outlives the drain."""
    return Unavailable(
        "the gateway was restarted before the answer was complete; send the request again",
        reason="GATEWAY_RESTARTING",
    )


def _closing_when(draining: asyncio.Event, send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start" and draining.is_set():
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return closing


class _Exchange:
    """One request's answer on its way: remembers its status, and adds our headers."""

    def __init__(self, send: Send, span: Span) -> None:
        self._send = send
        self.span = span
        self.status = 0
        self.allowance: Allowance | None = None
        self._is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = names.new_id("req")
            headers["x-millrace-trace-id"] = f"{self.span.get_span_context().trace_id:032x}"
            if self.allowance is not None:
                headers.update(self.allowance.headers())
        else:
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def reply(self, scope: Scope, receive: Receive, response: Response) -> None:
        """Answer, unless an answer was given; one that has begun can only be broken off."""
        if not self.status:
            await response(scope, receive, self.send)
        elif not self._is_complete:
            raise ConnectionError("the answer broke off")


def _attributes(scope: Scope, headers: Headers, method: str) -> dict[str, Any]:
    """OpenTelemetry's conventions for HTTP servers."""
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "user_agent.original": headers.get("user-agent", ""),
    }
    if scope.get("server"):
        attributes["server.address"], attributes["server.port"] = scope["server"]
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    return attributes


def _conclude(scope: Scope, span: Span, method: str, status: int, seconds: float) -> None:
    template = getattr(scope.get("route"), "path", "_unknown")
    status = status or 499  # the client went away before an answer began
    span.update_name(f"{method} {template}")
    span.set_attribute("http.route", template)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)
    _REQUESTS.labels(method, template, str(status)).inc()
    _SECONDS.labels(method, template).observe(seconds)
