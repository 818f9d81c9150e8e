"""``/mlflow/…/experiments``, ``runs``, ``metrics``: MLflow's tracking, of the caller's tenant."""

import asyncio
from typing import Any

from fastapi import Request

from millrace_gateway import tracking_calls
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.mlflow_shapes import PREFIX
from millrace_gateway.rest.routing import router
from millrace_runtime.errors import InvalidArgument

ROUTER = router("mlflow", PREFIX)

_LISTS = ("order_by",)


async def _read(request: Request, caller: CallerOf) -> dict[str, Any]:
    """With parameters in the query."""
    given: dict[str, Any] = dict(request.query_params)
    for name in _LISTS:
        if name in given:
            given[name] = request.query_params.getlist(name)
    return await _answer(request, caller, given)


async def _write(request: Request, caller: CallerOf) -> dict[str, Any]:
    """With parameters in the body."""
    given = await request.json()
    if not isinstance(given, dict):
        raise InvalidArgument("the body must be a JSON object")
    return await _answer(request, caller, given)


async def _answer(request: Request, caller: Caller, given: dict[str, Any]) -> dict[str, Any]:
    call = request.url.path.removeprefix(f"{PREFIX}/")
    tracking = caller.gateway.tracking
    return await asyncio.to_thread(tracking_calls.answer, tracking, caller.tenant, call, given)


for _call in tracking_calls.CALLS:
    if _call in tracking_calls.READS:
        ROUTER.add_api_route(f"/{_call}", _read, methods=["GET"], name=f"mlflow {_call}")
    if _call not in tracking_calls.READS or _call == "experiments/search":
        ROUTER.add_api_route(f"/{_call}", _write, methods=["POST"], name=f"mlflow {_call} (POST)")
