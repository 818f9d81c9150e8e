"""Whether a process is ready to do its work.

A probe is called until it returns; it raises ``NotReady`` with the reason meanwhile. It
returns the process id that the answer names, if it names one: while one process follows
another at the same address, either may answer.
"""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx

_TIMEOUT_SECONDS = 3.0
_SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
# Loopback speaks plain HTTP, and loading a trust store would cost more than the request.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
Probe = Callable[[], Awaitable[int | None]]


class NotReady(Exception):
    """Not yet; the message says why."""


async def get_json(url: str) -> Any:
    """The JSON document at ``url``.

    Raises:
        NotReady: nothing answers there, or not with success.
    """
    try:
        async with httpx.AsyncClient(
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            verify=NO_TLS,
        ) as client:
            response = await client.get(url)
            response.raise_for_status()
            return response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise NotReady(f"{url}: {error or type(error).__name__}") from error


def http(url: str) -> Probe:
    """Ready when ``url`` answers with success."""

    async def probe() -> int | None:
        document = await get_json(url)
        return document.get("pid") if isinstance(document, dict) else None

    return probe


def triton(address: str) -> Probe:
    """Ready when Triton's gRPC says that it is live; models are the registry's concern."""

    async def probe() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            # ServerLiveRequest has no fields, and ServerLiveResponse{live: true} is 08 01.
            live = channel.unary_unary(_SERVER_LIVE, None, None)
            try:
                answer = await live(b"", timeout=_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise NotReady(f"{address}: {error.code().name}") from error
        if answer != b"\x08\x01":
            raise NotReady(f"{address}: Triton is not live")

    return probe
