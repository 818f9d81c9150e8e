"""Errors in the shape that the clients of a prefix know.

Everything answers errors in the OpenAI API's shape, the edge included; here they are put in
another where it is due, with the headers as they are: under ``/v2`` in the Open Inference
Protocol's, ``{"error": "what was wrong"}``, under ``/mlflow`` in MLflow's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace_gateway.rest import mlflow_errors

Shape = Callable[[int, bytes], tuple[int, bytes]]
"""Status and body as they are answered otherwise, to those of the prefix."""


class FlatErrors:
    """Plain ASGI around the whole REST API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        shape = _SHAPES.get(f"/{path.split('/', 2)[1]}") if path.startswith("/") else None
        if scope["type"] == "http" and shape is not None:
            send = _Flattening(send, shape).send
        await self._app(scope, receive, send)


class _Flattening:
    """Holds an error's answer back until its body is complete."""

    def __init__(self, send: Send, shape: Shape) -> None:
        self._send = send
        self._shape = shape
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        status, body = self._shape(start["status"], self._body)
        start["status"] = status
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        self._start = None
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _flat(status: int, body: bytes) -> tuple[int, bytes]:
    try:
        document: Any = orjson.loads(body)
        said = document["error"]["message"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return status, body  # no error of the API: a model that is not ready, or nothing at all
    return status, orjson.dumps({"error": said})


_SHAPES: Mapping[str, Shape] = {"/v2": _flat, "/mlflow": mlflow_errors.shaped}
