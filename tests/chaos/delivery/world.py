"""One consumer with its real handlers, use cases and tables, and everything around it played."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from google.protobuf.message import Message
from sqlalchemy import MetaData, Table

from millrace.topology import consumed_by, fact_of
from millrace_runtime.bus import Subscription
from millrace_runtime.cloudevent import Event, from_json
from millrace_testkit.clock import FakeClock
from tests.chaos.delivery.faults import MortalDatabase, Neighbours

State = Mapping[str, Sequence[str]]
"""The lines of each table, generated ids replaced by natural keys, in an order of their own."""

Facts = tuple[tuple[str, Message], ...]
"""Each with its tenant."""

# What legitimately differs from one delivery to another: when, under which lease, in which trace.
_PASSING = frozenset(
    (
        "sequence",
        "published_in",
        "traceparent",
        "epoch",
        "lease_owner",
        "lease_expires",
        "create_time",
        "update_time",
        "start_time",
        "step_time",
        "retire_time",
        "finish_time",
        "trained_time",
    )
)


@dataclass(frozen=True)
class Happening:
    """Something that becomes true outside the consumer, or that a user asks of it."""

    what: str
    of: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{self.what}({', '.join(map(str, self.of))})"


def happening(what: str, *of: Any) -> Happening:
    return Happening(what, of)


@dataclass(frozen=True)
class Entry:
    """A happening in the order of truth, when it was, and the facts that it was told by."""

    happening: Happening
    time: datetime
    events: tuple[Event, ...]


class World(ABC):
    """A consumer on a database in memory. ``clear`` begins another history.

    Attributes:
        name: the consumer's stage.
        swept: messages of the facts whose content the reconciler finds by itself, so that one of
            them may be lost for good.
    """

    name: ClassVar[str]
    swept: ClassVar[tuple[type[Message], ...]] = ()

    def __init__(self, metadata: MetaData) -> None:
        self._metadata = metadata
        self.database = MortalDatabase()
        metadata.create_all(self.database.engine)
        self.clock = FakeClock()
        self.neighbours = Neighbours()

    def clear(self) -> None:
        """Empty the database and the truth, and start the consumer."""
        with self.database.engine.begin() as connection:
            for table in self._metadata.sorted_tables:
                connection.exec_driver_sql(f"DELETE FROM {table.name}")
        self.clock = FakeClock()
        self.neighbours.are_away = False
        self.forget()
        self.start()

    def now(self) -> datetime:
        return self.clock()

    def at(self, time: datetime) -> None:
        """Move the clock forward to ``time``."""
        self.clock.advance((time - self.clock()).total_seconds())

    def happen(self, what: Happening) -> Facts:
        """Make it true; return the facts that tell of it."""
        facts: Facts = getattr(self, what.what)(*what.of)
        return facts

    def handler(self, event: Event) -> Callable[[Event], None]:
        (found,) = [s.handle for s in self.subscriptions() if s.message is type(event.message)]
        return found

    def is_complete(self) -> bool:
        """Whether the consumer subscribes to what the topology says, so that nothing is left
        untried."""
        subscribed = {fact_of(s.message).type for s in self.subscriptions()}
        return subscribed == {fact.type for fact in consumed_by(self.name)}

    @abstractmethod
    def forget(self) -> None:
        """Forget all that was true."""

    @abstractmethod
    def start(self) -> None:
        """Build the consumer's parts on the database as it is, as after a crash."""

    @abstractmethod
    def subscriptions(self) -> Sequence[Subscription]: ...

    @abstractmethod
    def possible(self) -> Sequence[Happening]:
        """What may become true next."""

    @abstractmethod
    def sweep(self) -> None:
        """One round of the reconciler."""

    @abstractmethod
    def work(self) -> bool:
        """One piece of the work that follows; False: there is none."""

    @abstractmethod
    def finish(self) -> None:
        """Users take back what they held up, and all work is done."""

    @abstractmethod
    def state(self, has_worked: bool) -> State:
        """What the database holds, comparable with another history of the same truth.

        ``has_worked``: work was done in the middle of the history. Where it then depends on the
        moment what of several things was done, that is left out, and checked by itself.

        Raises:
            AssertionError: it contradicts itself.
        """

    def lines(self, table: Table, *ignored: str) -> list[str]:
        """The rows of a table, without what passes."""
        return sorted(_line(row) for row in self.rows(table, *ignored))

    def rows(self, table: Table, *ignored: str) -> list[dict[str, Any]]:
        with self.database.engine.begin() as connection:
            found = connection.execute(table.select()).all()
        left_out = _PASSING | set(ignored)
        return [
            {key: value for key, value in row._mapping.items() if key not in left_out}
            for row in found
        ]

    def events(self, outbox: Table) -> list[Event]:
        """The consumer's own facts, oldest first."""
        with self.database.engine.begin() as connection:
            found = connection.execute(outbox.select().order_by(outbox.c.sequence)).all()
        return [from_json(row.document) for row in found]

    def facts(self, outbox: Table) -> list[str]:
        return sorted(fact_line(event) for event in self.events(outbox))


def fact_line(event: Event) -> str:
    found = {field.name: value for field, value in event.message.ListFields()}
    fields = {name: value for name, value in found.items() if name not in _PASSING}
    return f"{event.subject} " + " ".join(f"{k}={str(v)!r}" for k, v in sorted(fields.items()))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def renamed(state: State, names: Mapping[str, str]) -> State:
    """``state`` with each generated id replaced by what it stands for."""

    def rename(line: str) -> str:
        for id, name in names.items():
            line = line.replace(id, name)
        return line

    return {table: sorted(map(rename, lines)) for table, lines in state.items()}
