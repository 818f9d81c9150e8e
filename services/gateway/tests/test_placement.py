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


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of minutes: what returns was not waited out."""
    monkeypatch.setattr(placement, "_ROUTE_CHANGE_SECONDS", 600.0)


def test_a_model_that_is_about_to_serve_is_waited_for() -> None:
    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING])
        attending = asyncio.create_task(placement_of(routes).attend("t", "demo"))
        await asyncio.sleep(0)
        routes.replace(2, [LOADING, OTHER])
        for _ in range(10):  # all that the loop has to do
            await asyncio.sleep(0)
        assert not attending.done(), "another model's change is none"
        routes.replace(3, [SERVING, OTHER])
        assert await asyncio.wait_for(attending, 20) == (SERVING, "")

    asyncio.run(scenario())


def test_one_that_serves_or_is_named_by_its_version_is_not() -> None:
    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING, OTHER])
        for model in ("other", "demo@1"):
            await asyncio.wait_for(placement_of(routes).attend("t", model), 20)

    asyncio.run(scenario())


def test_nobody_waits_for_ever_or_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_ROUTE_CHANGE_SECONDS", 0.01)

    async def scenario() -> None:
        routes = RouteTable()
        routes.replace(1, [LOADING])
        found, _ = await asyncio.wait_for(placement_of(routes).attend("t", "demo"), 20)
        assert found == LOADING
        with pytest.raises(NotFound):
            await placement_of(routes).attend("t", "nobody")

    asyncio.run(scenario())
