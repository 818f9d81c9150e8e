"""One request to a receiver: no redirects, no proxies, no connection kept, an answer of bounded
size in bounded time."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore

from millrace_gateway.webhooks.destination import CheckedBackend, Destinations, Refused
from millrace_gateway.webhooks.domain import Answer

KEPT_BODY_BYTES = 1024
_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
)


@dataclass
class _Heard:
    """As much of an answer as has come."""

    status_code: int | None = None
    retry_after: str = ""
    body: bytes = b""


class Poster:
    """Posts JSON to URLs that ``destinations`` lets through."""

    def __init__(
        self,
        destinations: Destinations,
        timeout_seconds: float,
        *,
        backend: httpcore.AsyncNetworkBackend | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.destinations = destinations
        self._timeout_seconds = timeout_seconds
        self._backend = CheckedBackend(destinations, backend)
        self._now = now
        self._ssl_context = httpcore.default_ssl_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What came of it. Nothing that a receiver does is raised."""
        started = time.perf_counter()
        heard, error = _Heard(), None
        try:
            self.destinations.parse(url)
            async with asyncio.timeout(self._timeout_seconds):
                await self._exchange(url, headers, body, heard)
        except Refused as refusal:
            error = str(refusal)
        except TimeoutError:
            error = f"no answer within {self._timeout_seconds:g} s"
        except _FAILURES as failure:
            error = f"{type(failure).__name__}: {failure}".removesuffix(": ")
        return Answer(
            time.perf_counter() - started,
            heard.status_code,
            # An answer whose body broke off, or never ended, is an answer.
            error if heard.status_code is None else None,
            _text(heard.body),
            _seconds(heard.retry_after, self._now()),
        )

    async def _exchange(
        self, url: str, headers: Mapping[str, str], body: bytes, heard: _Heard
    ) -> None:
        pool = httpcore.AsyncConnectionPool(
            self._ssl_context, max_keepalive_connections=0, network_backend=self._backend
        )
        told_headers = list(headers.items())
        async with pool, pool.stream("POST", url, headers=told_headers, content=body) as response:
            told = {name.lower(): value for name, value in response.headers}
            heard.retry_after = told.get(b"retry-after", b"").decode("latin-1")
            heard.status_code = response.status
            async for piece in response.aiter_stream():
                heard.body += piece[: KEPT_BODY_BYTES - len(heard.body)]
                if len(heard.body) >= KEPT_BODY_BYTES:
                    return


def _text(body: bytes) -> str:
    """For people, and for databases that know no NUL."""
    return body.decode(errors="replace").replace("\x00", "\ufffd")


def _seconds(retry_after: str, now: datetime) -> float | None:
    """Seconds from now (RFC 9110, section 10.2.3); None for what is neither number nor date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:12])
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
