"""Which generations may begin when engines are busy: places at endpoints, and a queue a class.

Every endpoint has the same number of places. The lower a class, the fewer of them it may help to
fill: what is beyond a class's part is kept for the classes above it (trunk reservation, as in
F. P. Kelly, "Loss networks", 1991). Who finds no place waits in the queue of its class. A place
that becomes free goes to the highest class that may have it, and there to the keys in turn. A key
may be held to a part of an endpoint: what it asks for beyond waits, and takes nobody's place.

Pure and synchronous: it takes no time, knows no clock, and tells waiters by calling them.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from millrace_gateway.domain import Priority

_CLASSES = (Priority.HIGH, Priority.DEFAULT, Priority.LOW)


class QueueFull(Exception):
    """There is no place, and none to wait at."""


@dataclass(frozen=True)
class Capacity:
    """How much there is for whom.

    Attributes:
        places: generations in progress at one endpoint.
        shares: the part of the places, in (0, 1], up to which a class may fill an endpoint;
            rounded up, so that a class has one place at least.
        queues: how many of a class may wait.
        key_share: the part, in (0, 1], up to which one key may fill an endpoint; rounded up.
    """

    places: int
    shares: Mapping[Priority, float]
    queues: Mapping[Priority, int]
    key_share: float = 1.0

    def limits(self) -> dict[Priority, int]:
        """Up to how many generations at an endpoint a class may begin one more."""
        limits, above = {}, self.places
        for priority in _CLASSES:
            above = min(above, max(1, math.ceil(self.places * self.shares[priority])))
            limits[priority] = above
        return limits

    def key_limit(self) -> int:
        """How many generations one key may have at an endpoint."""
        return math.ceil(self.places * self.key_share)

    def part(self, gateways: int) -> "Capacity":
        """What each of several gateways has of it, rounded up."""
        return replace(
            self,
            places=-(-self.places // gateways),
            queues={priority: -(-size // gateways) for priority, size in self.queues.items()},
        )


@dataclass(eq=False)
class Waiter:
    """One generation that waits for a place at any of ``endpoints``.

    Attributes:
        key: in whose name; keys of a class have their turns.
        wake: called once, when ``endpoint`` is set or the waiter was put out of the queue.
        endpoint: where it was given a place; empty before, and when it was put out.
    """

    endpoints: Sequence[str]
    priority: Priority
    key: str
    wake: Callable[[], None]
    endpoint: str = ""


@dataclass
class _Queue:
    """Waiters of one class by key; the first key is the next to have its turn."""

    maximum: int
    by_key: dict[str, deque[Waiter]] = field(default_factory=dict)
    length: int = 0

    def add(self, waiter: Waiter) -> None:
        self.by_key.setdefault(waiter.key, deque()).append(waiter)
        self.length += 1

    def remove(self, waiter: Waiter) -> None:
        waiters = self.by_key[waiter.key]
        waiters.remove(waiter)
        self.length -= 1
        if not waiters:
            del self.by_key[waiter.key]

    def contains(self, waiter: Waiter) -> bool:
        return waiter in self.by_key.get(waiter.key, ())

    def first(self, endpoint: str, may_enter: Callable[[str], bool]) -> Waiter | None:
        """The first in turn of the keys that may enter there."""
        for key, waiters in self.by_key.items():
            if may_enter(key):
                for waiter in waiters:
                    if endpoint in waiter.endpoints:
                        return waiter
        return None

    def had_its_turn(self, key: str) -> None:
        waiters = self.by_key.pop(key, None)
        if waiters:
            self.by_key[key] = waiters

    def yielding_to(self, key: str) -> Waiter | None:
        """The newest of the key with most waiters, if it has two more than ``key`` has."""
        longest = max(self.by_key.values(), key=len, default=None)
        if longest is None or len(longest) < len(self.by_key.get(key, ())) + 2:
            return None
        return longest[-1]


class Admission:
    """Who is in progress where, and who waits.

    While somebody waits for an endpoint it has no place that their class and key may have: so
    nobody of the same class or a lower one comes before those who wait, but for other keys.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._limits = capacity.limits()
        self._key_limit = capacity.key_limit()
        self._of_keys: Counter[tuple[str, str]] = Counter()
        self._queues = {priority: _Queue(capacity.queues[priority]) for priority in _CLASSES}
        self.in_progress: dict[str, int] = {}

    def enter(self, endpoint: str, priority: Priority, key: str = "") -> bool:
        """Take a place at ``endpoint``; false when there is none for this class or this key."""
        count = self.in_progress.get(endpoint, 0)
        if count >= self._limits[priority] or self._of_keys[endpoint, key] >= self._key_limit:
            return False
        self.in_progress[endpoint] = count + 1
        self._of_keys[endpoint, key] += 1
        return True

    def leave(self, endpoint: str, key: str = "") -> None:
        """Give a place back that was taken with ``key``: those who wait may have it."""
        self._of_keys[endpoint, key] -= 1
        if not self._of_keys[endpoint, key]:
            del self._of_keys[endpoint, key]
        count = self.in_progress[endpoint] - 1
        if count:
            self.in_progress[endpoint] = count
        else:
            del self.in_progress[endpoint]
        self._give(endpoint)

    def wait(self, waiter: Waiter) -> None:
        """Wait for a place; at once there is one, it is given within this call.

        When the queue is full, a key with few waiters gets the place of one with many.

        Raises:
            QueueFull: it is, and nobody's share of it is larger.
        """
        queue = self._queues[waiter.priority]
        for endpoint in waiter.endpoints:
            if self.enter(endpoint, waiter.priority, waiter.key):
                waiter.endpoint = endpoint
                waiter.wake()
                return
        if queue.length >= queue.maximum:
            put_out = queue.yielding_to(waiter.key)
            if put_out is None:
                raise QueueFull
            queue.remove(put_out)
            put_out.wake()
        queue.add(waiter)

    def withdraw(self, waiter: Waiter) -> None:
        """Stop waiting, or give back the place that was given. Call it once, and not both."""
        queue = self._queues[waiter.priority]
        if waiter.endpoint:
            self.leave(waiter.endpoint, waiter.key)
        elif queue.contains(waiter):
            queue.remove(waiter)

    def change(self, capacity: Capacity) -> None:
        """Hold to another capacity: who is in stays, and if there is more, who waits enters."""
        self._limits, self._key_limit = capacity.limits(), capacity.key_limit()
        for priority, queue in self._queues.items():
            queue.maximum = capacity.queues[priority]
        for endpoint in tuple(self.in_progress):  # where nobody is in, nobody waits
            self._give(endpoint)

    def is_calm(self, endpoint: str, beside: int) -> bool:
        """Whether nobody waits, and the lowest class could begin ``beside`` more and one there."""
        if any(queue.length for queue in self._queues.values()):
            return False
        return self.in_progress.get(endpoint, 0) + beside < self._limits[Priority.LOW]

    def waiting(self, priority: Priority) -> int:
        return self._queues[priority].length

    def _give(self, endpoint: str) -> None:
        def may_enter(key: str) -> bool:
            return self._of_keys[endpoint, key] < self._key_limit

        for priority, queue in self._queues.items():
            while (waiter := queue.first(endpoint, may_enter)) and self.enter(
                endpoint, priority, waiter.key
            ):
                queue.remove(waiter)
                queue.had_its_turn(waiter.key)
                waiter.endpoint = endpoint
                waiter.wake()
