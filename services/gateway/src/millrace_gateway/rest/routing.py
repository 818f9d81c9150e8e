"""Routers whose request bodies are strict JSON.

Python's own parser lets through what no other will take later: lone surrogates, NaN, infinities,
and nesting without bound. orjson refuses them (RFC 8259), and is quicker.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute


class _StrictRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def router(tag: str, prefix: str = "") -> APIRouter:
    """An empty router for one noun."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=_StrictRoute)
