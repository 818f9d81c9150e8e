"""JetStream, played: it repeats, reorders, delays and forgets, as it is allowed to.

A fact that is published again within the window of duplicates is one message; later it is
another. A message is delivered until it is acknowledged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from millrace_runtime.bus import DUPLICATE_WINDOW_SECONDS
from millrace_runtime.cloudevent import Event, from_json, to_json
from millrace_runtime.errors import Unavailable
from tests.chaos.delivery.faults import NO_FAULT, Crash, Fault, Moment
from tests.chaos.delivery.world import World

MAXIMUM_DELIVERIES = 5
_WINDOW = timedelta(seconds=DUPLICATE_WINDOW_SECONDS)


@dataclass
class Message:
    """One copy of a fact in the stream."""

    event: Event
    is_acknowledged: bool = False

    def __repr__(self) -> str:
        return named(self.event)


class Bus:
    """The stream, and the consumer at its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._published: dict[str, datetime] = {}
        self._messages: list[Message] = []
        self.deliveries: dict[str, int] = {}
        self.crashes = 0

    def publish(self, event: Event) -> None:
        """A relay publishes, perhaps not for the first time."""
        now = self._world.clock()
        before = self._published.get(event.id)
        if before is None or now - before > _WINDOW:
            self._published[event.id] = now
            self._messages.append(Message(from_json(to_json(event))))

    def waiting(self) -> Sequence[Message]:
        """What may be delivered next: in any order, a redelivery is as good as a first one."""
        return [message for message in self._messages if not message.is_acknowledged]

    def repeatable(self) -> Sequence[Message]:
        """What waits and was not yet delivered five times."""
        return [
            message
            for message in self.waiting()
            if self.deliveries.get(message.event.id, 0) < MAXIMUM_DELIVERIES
        ]

    def drop(self, event: Event) -> None:
        """The fact is lost: dead-lettered, and nobody looks at it."""
        self._messages = [m for m in self._messages if m.event.id != event.id]

    def deliver(self, message: Message, fault: Fault = NO_FAULT) -> None:
        """Hand a message to the consumer, which may die of it."""
        event = message.event
        self.deliveries[event.id] = self.deliveries.get(event.id, 0) + 1
        if fault.moment == Moment.BEFORE_HANDLER:
            self._world.start()
            return
        handled = self.call(lambda: self._world.handler(event)(event), fault)
        if handled and fault.moment != Moment.BEFORE_ACKNOWLEDGEMENT:
            message.is_acknowledged = True

    def call(self, what: Callable[[], object], fault: Fault = NO_FAULT) -> bool:
        """Have the consumer do something; whether it came to an end."""
        world = self._world
        world.database.arm(fault)
        away = world.neighbours.are_away
        world.neighbours.are_away = away or fault.moment == Moment.UNANSWERED
        try:
            what()
        except Crash:
            self.crashes += 1
            world.database.arm(NO_FAULT)
            world.start()
            return False
        except Unavailable:
            return False
        finally:
            world.database.arm(NO_FAULT)
            world.neighbours.are_away = away
        return True


def named(event: Event) -> str:
    """Short enough to be read in a row of them."""
    return f"{event.id}:{event.fact.fact}"
