"""Errors under ``/v2`` in the Open Inference Protocol's shape: ``{"error": "what was wrong"}``.

Everything answers errors in the OpenAI API's shape, the edge included; here they are put in the
other where it is due, with status and headers as they are.
"""

from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PREFIX = "/v2"


class FlatErrors:
    """Plain ASGI around the whole REST API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == _PREFIX or path.startswith(f"{_PREFIX}/")):
            send = _Flattening(send).send
        await self._app(scope, receive, send)


class _Flattening:
    """Holds an error's answer back until its body is complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
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
        body = _flat(self._body)
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        self._start = None
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _flat(body: bytes) -> bytes:
    try:
        document: Any = orjson.loads(body)
        said = document["error"]["message"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return body  # no error of the API: a model that is not ready, or nothing at all
    return orjson.dumps({"error": said})
