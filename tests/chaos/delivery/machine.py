"""Histories of deliveries, as a state machine, each held against the undisturbed one.

What becomes true is drawn, and so is what the stream makes of it: facts come late or again or in
another order, one of them never, and the consumer dies at any point of handling them, while its
reconciler sweeps and its workers work. In the end every fact is delivered once more. Then the
database must hold what it holds when each fact comes once, in the order of truth.
"""

from collections import Counter
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from millrace.topology import fact_of
from millrace_runtime.bus import DUPLICATE_WINDOW_SECONDS
from millrace_runtime.cloudevent import Event
from tests.chaos.delivery.bus import Bus, named
from tests.chaos.delivery.faults import FAULTS, NO_FAULT, Fault
from tests.chaos.delivery.world import Entry, Happening, State, World

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_DELAYS = (1, 20, 3 * _MINUTE, _HOUR, 3 * _DAY)
_MAXIMUM_FACTS = 8
_LONGEST = 1000
_PLACES = st.lists(st.integers(0, _MAXIMUM_FACTS), max_size=_MAXIMUM_FACTS)
_FAULTS = st.sampled_from((NO_FAULT,) * 5 + FAULTS)


class Diverged(AssertionError):
    """The end state is not that of the undisturbed history."""


class Delivery(RuleBasedStateMachine):
    """One history. ``world`` and ``totals`` are shared by those of a run."""

    world: ClassVar[World]
    totals: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self._world.clear()
        self._bus = Bus(self._world)
        self._truth: list[Entry] = []
        self._lost: set[str] = set()
        self._steps: list[str] = []
        self._has_worked = False
        self._is_amid_a_step = False
        self._places: list[int] = []

    @property
    def _world(self) -> World:
        return type(self).world

    @initialize(data=st.data(), places=_PLACES, count=st.integers(1, 4))
    def begin(self, data: st.DataObject, places: list[int], count: int) -> None:
        """``places``: in which order the facts come once more in the end."""
        self._places = places
        for _ in range(count):
            self.become_true(data)

    @rule(data=st.data())
    def become_true(self, data: st.DataObject) -> None:
        """Something happens; its facts are published, unless their relay is slow."""
        if len(self._events()) >= _MAXIMUM_FACTS:
            return
        possible = self._world.possible()
        kind = data.draw(st.sampled_from(sorted({each.what for each in possible})))
        what = data.draw(st.sampled_from([each for each in possible if each.what == kind]))
        is_slow = data.draw(st.booleans())
        self._step(f"{what!r}" + (", published late" if is_slow else ""))
        entry = self._happen(what)
        if not is_slow:
            for event in entry.events:
                self._bus.publish(event)

    @precondition(lambda self: self._kept())
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """A relay publishes, for the first time or again."""
        event = self._choose(data, self._kept())
        self._step(f"publish {named(event)}")
        self._bus.publish(event)

    @precondition(lambda self: self._bus.repeatable())
    @rule(data=st.data(), fault=_FAULTS)
    def deliver(self, data: st.DataObject, fault: Fault) -> None:
        message = data.draw(st.sampled_from(self._bus.repeatable()))
        self._step(f"deliver {message!r} {fault!r}")
        self._bus.deliver(message, fault)

    @precondition(lambda self: self._bus.repeatable())
    @rule(data=st.data(), fault=_FAULTS)
    def deliver_too(self, data: st.DataObject, fault: Fault) -> None:
        """As ``deliver``: the most frequent thing."""
        self.deliver(data, fault)

    @precondition(lambda self: self._losable())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A fact that the reconciler can do without never comes (again)."""
        event = self._choose(data, self._losable())
        self._step(f"lose {named(event)}")
        self._lost.add(event.id)
        self._bus.drop(event)

    @rule(seconds=st.sampled_from(_DELAYS))
    def wait(self, seconds: int) -> None:
        self._step(f"wait {seconds} s")
        self._world.clock.advance(seconds)

    @rule(fault=_FAULTS)
    def sweep(self, fault: Fault) -> None:
        self._step(f"sweep {fault!r}")
        self._bus.call(self._world.sweep, fault)

    @rule(fault=_FAULTS)
    def work(self, fault: Fault) -> None:
        self._step(f"work {fault!r}")
        self._has_worked = True
        self._bus.call(self._world.work, fault)

    @invariant()
    def step_has_ended(self) -> None:
        self._is_amid_a_step = False

    def teardown(self) -> None:
        """Everything comes once more; then the history is held against the undisturbed one."""
        if self._is_amid_a_step:  # which failed by itself, and says why
            return
        try:
            self._drain()
            found = self._world.state(self._has_worked)
        except AssertionError as error:
            raise Diverged("\n".join((*self._steps, str(error)))) from error
        self._count()
        expected = self._undisturbed()
        if found != expected:
            raise Diverged("\n".join((*self._steps, *_differences(found, expected))))

    def _happen(self, what: Happening) -> Entry:
        first = len(self._events())
        time = self._world.clock()
        facts = self._world.happen(what)
        events = tuple(
            Event(f"f{first + n}", fact_of(type(message)), tenant, message, time)
            for n, (tenant, message) in enumerate(facts, start=1)
        )
        self._truth.append(Entry(what, time, events))
        return self._truth[-1]

    def _drain(self) -> None:
        events = self._kept()
        places = dict(zip((event.id for event in events), self._places, strict=False))
        events.sort(key=lambda event: places.get(event.id, 0))
        for event in events:
            self._world.clock.advance(DUPLICATE_WINDOW_SECONDS + 1)
            self._bus.publish(event)
            for message in [m for m in self._bus.waiting() if m.event.id == event.id]:
                self._bus.deliver(message)
        assert not self._bus.waiting(), "a fact is never acknowledged"
        self._world.finish()

    def _undisturbed(self) -> State:
        world = self._world
        world.clear()
        for entry in self._truth:
            world.at(entry.time)
            world.happen(entry.happening)
            for event in entry.events:
                world.handler(event)(event)
        world.finish()
        return world.state(self._has_worked)

    def _events(self) -> list[Event]:
        return [event for entry in self._truth for event in entry.events]

    def _kept(self) -> list[Event]:
        """The facts that are not lost for good."""
        return [event for event in self._events() if event.id not in self._lost]

    def _losable(self) -> list[Event]:
        return [event for event in self._kept() if isinstance(event.message, self._world.swept)]

    def _choose(self, data: st.DataObject, events: list[Event]) -> Event:
        by_name = {named(event): event for event in events}
        return by_name[data.draw(st.sampled_from(list(by_name)))]

    def _step(self, what: str) -> None:
        self._is_amid_a_step = True
        self._steps.append(what)

    def _count(self) -> None:
        self.totals["histories"] += 1
        self.totals["facts"] += len(self._events())
        self.totals["facts_lost"] += len(self._lost)
        self.totals["deliveries"] += sum(self._bus.deliveries.values())
        self.totals["crashes"] += self._bus.crashes


def machine_of(world: World, totals: Counter[str]) -> type[Delivery]:
    """The histories of one consumer."""
    attributes: dict[str, Any] = {"world": world, "totals": totals}
    return type(f"Delivery_{world.name}", (Delivery,), attributes)


def _differences(found: State, expected: State) -> list[str]:
    """What one has and the other has not, table by table."""
    lines = []
    for table in expected:
        here, there = Counter(found[table]), Counter(expected[table])
        lines += [f"{table}: has        {line}" for line in sorted((here - there).elements())]
        lines += [f"{table}: should have {line}" for line in sorted((there - here).elements())]
    return [line if len(line) < _LONGEST else f"{line[:_LONGEST]} …" for line in lines]
