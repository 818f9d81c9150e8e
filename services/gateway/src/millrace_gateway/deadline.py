"""How long a client waits for its answer, and what ends when that time has passed.

A client says it over gRPC by its call's deadline, over REST in a header (``rest/deadlines.py``).
What is cut short is cancelled, as it is when a client leaves: a place in the queue is given up,
and the engine stops. Moments are the event loop's clock (``loop.time()``), in seconds.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import grpc

from millrace_runtime.errors import MillraceError

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class DeadlineExceeded(MillraceError):
    """The client does not wait any longer."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        message = "the deadline of the request has passed before its answer was complete"
        super().__init__(message, reason="DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class Deadline:
    """Until when a client waits; None: as long as it takes.

    Attributes:
        begins_by: the moment at which the first piece of the answer must be there; no later than
            ``ends_by``.
        ends_by: the moment at which all of it must be.
    """

    begins_by: float | None = None
    ends_by: float | None = None

    def of_part(self) -> "Deadline":
        """What holds for the other answers of a request whose first has begun."""
        return replace(self, begins_by=self.ends_by)


OPEN = Deadline()


def moment_after(seconds: float | None) -> float | None:
    """When ``seconds`` from now will have passed."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def seconds_to(moment: float | None) -> float | None:
    """What is left until ``moment``; more than nothing.

    Raises:
        DeadlineExceeded: nothing is.
    """
    if moment is None:
        return None
    seconds = moment - asyncio.get_running_loop().time()
    if seconds <= 0:
        raise DeadlineExceeded
    return seconds


async def within(moment: float | None, work: Awaitable[_Result]) -> _Result:
    """The result of ``work``, which is cancelled at ``moment``.

    Raises:
        DeadlineExceeded: it was.
    """
    if moment is None:
        return await work
    try:
        async with asyncio.timeout_at(moment) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceeded from error


class Expiring(Generic[_Item]):
    """``items`` until ``moment``; from then on to read them raises ``DeadlineExceeded``.

    One timer, however many items. Whoever waits for an item at ``moment`` is cancelled as
    ``asyncio.timeout`` does it: that itself must not be around a generator's ``yield``, where it
    would hit whatever the reader does between two items (PEP 789).

    Args:
        give_up: called when nobody waits for an item at ``moment``, so that what makes the items
            ends then, and not when a slow reader comes back.
    """

    def __init__(
        self,
        items: AsyncIterator[_Item],
        moment: float,
        give_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._items = items
        self._give_up = give_up
        self._is_over = False
        self._reader: asyncio.Task[object] | None = None
        self._giving_up: asyncio.Future[None] | None = None
        self._timer = asyncio.get_running_loop().call_at(moment, self._expire)

    def __aiter__(self) -> "Expiring[_Item]":
        return self

    async def __anext__(self) -> _Item:
        if self._is_over:
            raise DeadlineExceeded
        reader = self._reader = asyncio.current_task()
        assert reader is not None, "coroutines of asyncio run in tasks"
        others = reader.cancelling()
        try:
            return await anext(self._items)
        except BaseException as error:
            is_ours = self._is_over and reader.uncancel() <= others
            if is_ours and isinstance(error, asyncio.CancelledError):
                raise DeadlineExceeded from None
            raise
        finally:
            self._reader = None

    async def aclose(self) -> None:
        """Close ``items``, if they can be. Closing twice is as once."""
        self._timer.cancel()
        close: Callable[[], Awaitable[None]] | None = getattr(self._items, "aclose", None)
        if close is not None:
            await close()

    def _expire(self) -> None:
        self._is_over = True
        if self._reader is not None:
            self._reader.cancel()
        else:
            self._giving_up = asyncio.ensure_future(self._give_up())
