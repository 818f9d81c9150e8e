"""How one line of a batch is answered: by the gateway's own REST application, in process.

So a line's answer is what its sender would have got online, byte for byte. The request does not
come in from outside, where the edge asks for a key's secret (it is kept nowhere): who asks is
put into the ASGI scope, which only code of this process can write to. ``app`` is what lies
behind the edge; the edge lets nobody near it without a key.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from millrace_gateway.domain import Key, Principal, Priority
from millrace_gateway.rest import errors
from millrace_runtime import names
from millrace_runtime.errors import Unauthenticated

_RETRYABLE = (429, 503)
_USUAL_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    request_id: str = field(default_factory=lambda: names.new_id("req"))

    def retry_seconds(self) -> float | None:
        """After how long to ask again; None when the answer is final.

        Read as OpenAI's clients do: ``x-should-retry`` before anything else.
        """
        if self.status not in _RETRYABLE or self.headers.get("x-should-retry") == "false":
            return None
        told = self.headers.get("retry-after-ms"), self.headers.get("retry-after")
        for value, scale in zip(told, (0.001, 1.0), strict=True):
            if value is not None and (seconds := _number(value)) is not None:
                return seconds * scale
        return _USUAL_WAIT_SECONDS


class Desk:
    """Answers requests in the name of a key, whose limits and rights hold as they are now.

    Args:
        find_key: the key of a tenant with an id, revoked or not; asked in a thread.
    """

    def __init__(self, app: ASGIApp, find_key: Callable[[str, str], Key | None]) -> None:
        self._app = app
        self._find_key = find_key

    async def ask(self, tenant: str, key_id: str, path: str, body: bytes) -> Answered:
        """POST ``body``. What fails is an answer too."""
        key = await asyncio.to_thread(self._find_key, tenant, key_id)
        if key is None or key.revoke_time is not None:
            return _refused(
                Unauthenticated(
                    "the API key that made the batch was revoked", reason="INVALID_API_KEY"
                )
            )
        exchange = _Exchange(body)
        try:
            scope = _scope(path, len(body), _of_low_priority(key.principal))
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # Starlette raises what it has answered with a 500; it is logged there.
            if not exchange.status:
                raise
        return exchange.answered()


def _of_low_priority(principal: Principal) -> Principal:
    """Interactive requests go first, whatever the key's own priority."""
    return replace(principal, limits=replace(principal.limits, priority=Priority.LOW))


def _scope(path: str, size_bytes: int, principal: Principal) -> Scope:
    """A request as ASGI has it (https://asgi.readthedocs.io/en/latest/specs/www.html)."""
    headers = {"content-type": "application/json", "content-length": str(size_bytes)}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {"principal": principal},
    }


class _Exchange:
    """Both sides of one request: its body goes in, and nobody hangs up."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._parts: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self.status = 0

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # until the handler stops asking
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))

    def answered(self) -> Answered:
        return Answered(self.status, b"".join(self._parts), Headers(raw=self._headers))


def _refused(error: Unauthenticated) -> Answered:
    response = errors.response(error)
    return Answered(response.status_code, bytes(response.body), response.headers)


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
