"""Places: who is let wait for what."""

import asyncio

import pytest

from millrace_gateway import placement
from millrace_gateway.admission import Capacity
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.health import Health
from millrace_gateway.placement import Placement
from millrace_gateway.route import Route, RouteTable, Target
from millrace_runtime.errors import NotFound

LOADING = Route("t", "demo", "t.demo", (Target(1, 0.0, ("a:1",)),))
SERVING = Route("t", "demo", "t.demo", (Target(1, 1.0, ("a:1",)),))
OTHER = Route("t", "other", "t.other", (Target(1, 1.0, ("a:1",)),))


def placement_of(routes: RouteTable) -> Placement:
    of_each = dict.fromkeys(Priority, 1)
    entrance = Entrance(8, Capacity(8, dict.fromkeys(Priority, 1.0), of_each), wait_seconds=1)
    return Placement(routes, entrance, Health())


def test_a_model_that_is_about_to_serve_is_waited_for() -> None:
    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING])
        attending = asyncio.create_task(placement_of(routes).attend("t", "demo"))
        await asyncio.sleep(0)
        routes.replace(2, [LOADING, OTHER])
        await asyncio.sleep(0.01)
        assert not attending.done(), "another model's change is none"
        routes.replace(3, [SERVING, OTHER])
        await asyncio.wait_for(attending, 0.5)

    asyncio.run(scenario())


def test_one_that_serves_or_is_named_by_its_version_is_not() -> None:
    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING, OTHER])
        for model in ("other", "demo@1"):
            await asyncio.wait_for(placement_of(routes).attend("t", model), 0.5)

    asyncio.run(scenario())


def test_nobody_waits_for_ever_or_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_ROUTE_CHANGE_SECONDS", 0.01)

    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING])
        await asyncio.wait_for(placement_of(routes).attend("t", "demo"), 0.5)
        with pytest.raises(NotFound):
            await placement_of(routes).attend("t", "nobody")

    asyncio.run(scenario())
