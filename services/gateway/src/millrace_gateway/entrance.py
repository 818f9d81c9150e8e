"""Where generations wait for their place at an engine: ``admission`` with a clock and metrics."""

import asyncio
from collections.abc import Mapping, Sequence

from prometheus_client import Counter, Gauge

from millrace_gateway.admission import Admission, Capacity, QueueFull, Waiter
from millrace_gateway.domain import Priority
from millrace_runtime.errors import ResourceExhausted

_WAITING = Gauge(
    "millrace_admission_waiting", "Completions that wait for a place at an engine.", ["priority"]
)
_REFUSED = Counter(
    "millrace_admission_refused_total",
    "Completions refused (429): the gateway's maximum, a full queue, waited too long.",
    ["priority", "reason"],
)


class Entrance:
    """Lets generations in, up to ``maximum`` in all, and up to ``capacity`` at each endpoint.

    ``maximum`` guards the gateway itself. High priority is not held to it: the endpoints' places
    and its queue bound it, and what the other classes fill must not keep it out.
    """

    def __init__(self, maximum: int, capacity: Capacity, wait_seconds: float) -> None:
        self._maximum = maximum
        self._admission = Admission(capacity)
        self._wait_seconds = wait_seconds

    @property
    def in_progress(self) -> Mapping[str, int]:
        """Generations by endpoint; those without any are left out."""
        return self._admission.in_progress

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
        self, preferred: str, endpoints: Sequence[str], priority: Priority, key: str
    ) -> str:
        """Take a place at ``preferred``, or wait for one at any of ``endpoints``: which it was.

        Raises:
            ResourceExhausted: there is none, and the queue is full or waiting took too long.
        """
        if self._admission.enter(preferred, priority):
            return preferred
        return await self._wait(endpoints, priority, key)

    def leave(self, endpoint: str) -> None:
        self._admission.leave(endpoint)

    async def _wait(self, endpoints: Sequence[str], priority: Priority, key: str) -> str:
        woken = asyncio.Event()
        waiter = Waiter(endpoints, priority, key, woken.set)
        try:
            self._admission.wait(waiter)
        except QueueFull:
            raise _refused(priority, "queue_full", "the engines are busy") from None
        try:
            self._measure()
            async with asyncio.timeout(self._wait_seconds):
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
