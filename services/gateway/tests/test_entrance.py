"""How long, and how many, requests to one model may wait: its deployment's queue policy."""

import asyncio

import pytest

from millrace_gateway.admission import Capacity
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.route import QueuePolicy, Route
from millrace_runtime.errors import ResourceExhausted

ENDPOINT = "triton:8001"


def entrance(wait_seconds: float = 60) -> Entrance:
    """One place; many may wait."""
    shares, queues = dict.fromkeys(Priority, 1.0), dict.fromkeys(Priority, 100)
    return Entrance(100, Capacity(1, shares, queues), wait_seconds)


def route(model: str, **policy: float) -> Route:
    return Route("t", model, f"t.{model}", (), queue_policy=QueuePolicy(**policy))  # type: ignore[arg-type]


async def enter(at: Entrance, found: Route) -> str:
    return await at.enter(ENDPOINT, [ENDPOINT], Priority.DEFAULT, "key", found)


def test_only_so_many_of_a_model_may_wait() -> None:
    async def scenario() -> None:
        at, strict, free = entrance(), route("strict", max_queue_size=2), route("free")
        await enter(at, strict)
        waiting = [asyncio.ensure_future(enter(at, strict)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="2 requests to 'strict' wait already"):
            await enter(at, strict)
        waiting.append(asyncio.ensure_future(enter(at, free)))
        await asyncio.sleep(0)
        for task in waiting:
            at.leave(ENDPOINT, "key")
            assert await task == ENDPOINT
        # Who has entered waits no more: there is room again.
        again = asyncio.ensure_future(enter(at, strict))
        await asyncio.sleep(0)
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        with pytest.raises(ResourceExhausted, match="busy"):
            await enter(at, route("hasty", max_queue_size=1, default_timeout_seconds=0.001))

    asyncio.run(scenario())


def test_what_the_policy_leaves_open_is_as_the_gateway_is_set() -> None:
    async def scenario() -> None:
        at = entrance(wait_seconds=0.001)
        await enter(at, route("demo"))
        with pytest.raises(ResourceExhausted):
            await enter(at, route("demo"))
        patient = asyncio.ensure_future(enter(at, route("demo", default_timeout_seconds=60)))
        with pytest.raises(ResourceExhausted):
            await enter(at, route("demo", max_queue_size=5))
        at.leave(ENDPOINT, "key")
        assert await patient == ENDPOINT

    asyncio.run(scenario())


def test_a_class_may_have_less_patience_than_others() -> None:
    """Who has none is refused, while who came before and is patient is still there."""

    async def scenario() -> None:
        capacity = Capacity(1, dict.fromkeys(Priority, 1.0), dict.fromkeys(Priority, 100))
        at = Entrance(100, capacity, 60, {Priority.LOW: 0.001})
        await enter(at, route("demo"))
        patient = asyncio.ensure_future(enter(at, route("demo")))
        with pytest.raises(ResourceExhausted, match="busy"):
            await at.enter(ENDPOINT, [ENDPOINT], Priority.LOW, "key", route("demo"))
        assert not patient.done()
        at.leave(ENDPOINT, "key")
        assert await patient == ENDPOINT

    asyncio.run(scenario())
