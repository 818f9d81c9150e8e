"""Where generations wait for their place at an engine: ``admission`` with a clock and metrics."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from prometheus_client import Counter as CounterMetric
from prometheus_client import Gauge

from millrace_gateway.admission import Admission, Capacity, QueueFull, Waiter
from millrace_gateway.domain import Priority
from millrace_gateway.route import Route
from millrace_runtime.errors import ResourceExhausted

_WAITING = Gauge(
    "millrace_admission_waiting", "Completions that wait for a place at an engine.", ["priority"]
)
_REFUSED = CounterMetric(
    "millrace_admission_refused_total",
    "Completions refused (429): the gateway's maximum, a full queue, waited too long.",
    ["priority", "reason"],
)


class Entrance:
    """Lets generations in, up to ``maximum`` in all, and up to ``capacity`` at each endpoint.

    The capacity is all gateways' together; ``maximum`` guards this one itself. High priority is not
    held to that: the endpoints' places and its queue bound it, and what the other classes fill must
    not keep it out.

    Args:
        wait_seconds: longest that a generation waits for a place.
        patience_seconds: the same, of classes for which it is another time.
    """

    def __init__(
        self,
        maximum: int,
        capacity: Capacity,
        wait_seconds: float,
        patience_seconds: Mapping[Priority, float] = MappingProxyType({}),
    ) -> None:
        self._maximum = maximum
        self._capacity = capacity
        self._gateways = 1
        self._admission = Admission(capacity)
        self._wait_seconds = {
            priority: patience_seconds.get(priority, wait_seconds) for priority in Priority
        }
        self._queued: Counter[str] = Counter()
        self._make_room: Callable[[], None] = lambda: None

    @property
    def in_progress(self) -> Mapping[str, int]:
        """Generations by endpoint; those without any are left out."""
        return self._admission.in_progress

    def share(self, gateways: int) -> None:
        """Hold this gateway to its part of the places and queues; who is in stays."""
        self._gateways = gateways
        self._admission.change(self._capacity.part(gateways))

    def on_waiting(self, make_room: Callable[[], None]) -> None:
        """Have ``make_room`` called whenever somebody finds no place."""
        self._make_room = make_room

    def is_calm(self, endpoint: str, beside: int) -> bool:
        """Whether there is room at ``endpoint`` for one that has no place, ``beside`` others."""
        return self._admission.is_calm(endpoint, beside)

    def check(self, active: int, priority: Priority) -> None:
        """Refuse what is beyond the gateway's own maximum.

        Args:
            active: generations in progress and waiting.

        Raises:
            ResourceExhausted: there are too many.
        """
        if active >= self._maximum and priority is not Priority.HIGH:
            raise _refused(priority, "maximum", f"{active} completions are in progress")

    async def enter(
        self,
        preferred: str,
        endpoints: Sequence[str],
        priority: Priority,
        key: str,
        route: Route | None = None,
    ) -> str:
        """Take a place at ``preferred``, or wait for one at any of ``endpoints``: which it was.

        Args:
            route: of the model that is asked, whose policy holds where it says something.

        Raises:
            ResourceExhausted: there is none, and the queue is full or waiting took too long.
        """
        if self._admission.enter(preferred, priority, key):
            return preferred
        self._make_room()
        if route is None:
            return await self._wait(endpoints, priority, key, self._wait_seconds[priority])
        policy, model = route.queue_policy, route.triton_model
        longest = policy.max_queue_size
        if longest is not None and self._queued[model] >= -(-longest // self._gateways):
            what = f"{self._queued[model]} requests to {route.model!r} wait already"
            raise _refused(priority, "queue_full", what)
        self._queued[model] += 1
        try:
            seconds = policy.default_timeout_seconds or self._wait_seconds[priority]
            return await self._wait(endpoints, priority, key, seconds)
        finally:
            self._queued -= Counter((model,))  # which leaves no model behind with none

    def leave(self, endpoint: str, key: str) -> None:
        """Give back what was taken at ``endpoint`` with ``key``."""
        self._admission.leave(endpoint, key)

    async def _wait(
        self, endpoints: Sequence[str], priority: Priority, key: str, seconds: float
    ) -> str:
        woken = asyncio.Event()
        waiter = Waiter(endpoints, priority, key, woken.set)
        try:
            self._admission.wait(waiter)
        except QueueFull:
            raise _refused(priority, "queue_full", "the engines are busy") from None
        try:
            self._measure()
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            self._admission.withdraw(waiter)
            raise _refused(priority, "timeout", "the engines are busy") from None
        except BaseException:
            self._admission.withdraw(waiter)
            raise
        finally:
            self._measure()
        if not waiter.endpoint:
            raise _refused(priority, "queue_full", "the engines are busy")
        return waiter.endpoint

    def _measure(self) -> None:
        for priority in Priority:
            _WAITING.labels(priority.value).set(self._admission.waiting(priority))


def _refused(priority: Priority, reason: str, what: str) -> ResourceExhausted:
    _REFUSED.labels(priority.value, reason).inc()
    return ResourceExhausted(f"{what}; try again in a second", reason="RATE_LIMIT_EXCEEDED")
