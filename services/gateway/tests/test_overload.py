"""Admission before an engine that is played in virtual time: what overload does to whom.

The engine takes ``STEP + STREAM · n`` seconds for a token of each of its ``n`` streams, as those
do that batch. Requests come as Poisson processes; all figures are the draw's, on any machine.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from millrace_gateway.admission import Admission, Capacity, QueueFull, Waiter
from millrace_gateway.domain import KeyLimits, Principal, Priority, Role
from millrace_gateway.limits import Limiter, RateLimited

STEP, STREAM = 0.0010, 0.00011  # seconds; measured with make bench ONLY=road
TOKENS, PLACES = 64, 8
PEAK = PLACES / (STEP + STREAM * PLACES)  # tokens a second with all places taken
SECONDS = 200.0
LOW_PATIENCE = 0.015
CAPACITY = Capacity(
    PLACES,
    shares={Priority.HIGH: 1.0, Priority.DEFAULT: 0.9, Priority.LOW: 0.875},
    queues={Priority.HIGH: 64, Priority.DEFAULT: 64, Priority.LOW: 4},
)


@dataclass(frozen=True)
class Flow:
    """Requests of one key and class, ``per_second`` on average."""

    key: str
    priority: Priority
    per_second: float
    requests_per_minute: int | None = None

    @property
    def principal(self) -> Principal:
        return Principal("t", self.key, Role.MEMBER, KeyLimits(self.requests_per_minute))


@dataclass(eq=False)
class Asked:
    """One request; ``left`` is how many of its tokens are to come."""

    flow: Flow
    came: float
    left: float = TOKENS


@dataclass
class Seen:
    """Seconds to each whole answer and to each refusal."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return sorted(self.answered)[int(0.99 * len(self.answered))]


class Play:
    """One engine, its admission, and who comes."""

    def __init__(self, flows: Sequence[Flow], capacity: Capacity) -> None:
        self.seen = {flow.key: Seen() for flow in flows}
        self.tokens = 0.0
        self._now = 0.0
        self._admission = Admission(capacity)
        self._limiter = Limiter(monotonic_seconds=lambda: self._now)
        self._running: list[Asked] = []
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        for flow in flows:
            self._come(flow, random.Random(flow.key))

    def run(self) -> None:
        while self._now < SECONDS:
            step = STEP + STREAM * len(self._running)
            first = min(self._running, key=lambda asked: asked.left, default=None)
            ends = math.inf if first is None else self._now + first.left * step
            if first is not None and ends <= self._due[0][0]:
                self._generate(ends, step)
                self._end(first)
            else:
                due, _, action = heapq.heappop(self._due)
                self._generate(due, step)
                action()

    def _generate(self, until: float, step: float) -> None:
        tokens = (until - self._now) / step
        for asked in self._running:
            asked.left -= tokens
        self.tokens += tokens * len(self._running)
        self._now = until

    def _at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), action))

    def _come(self, flow: Flow, draw: random.Random) -> None:
        def come() -> None:
            self._ask(flow)
            self._come(flow, draw)

        self._at(self._now + draw.expovariate(flow.per_second), come)

    def _ask(self, flow: Flow) -> None:
        """What ``generation.py`` and ``entrance.py`` do."""
        allowance = self._limiter.of(flow.principal)
        if allowance is not None:
            try:
                allowance.reserve(0).settle(0)
            except RateLimited:
                self.seen[flow.key].refused.append(0.0)
                return
        asked = Asked(flow, self._now)
        if self._admission.enter("a:1", flow.priority, flow.key):
            self._running.append(asked)
            return
        waiter = Waiter(("a:1",), flow.priority, flow.key, lambda: self._woken(asked, waiter))
        try:
            self._admission.wait(waiter)
        except QueueFull:
            self._refuse(asked)
            return
        if flow.priority is Priority.LOW:
            self._at(self._now + LOW_PATIENCE, lambda: self._give_up(asked, waiter))

    def _woken(self, asked: Asked, waiter: Waiter) -> None:
        if waiter.endpoint:
            self._running.append(asked)
        else:
            self._refuse(asked)

    def _give_up(self, asked: Asked, waiter: Waiter) -> None:
        if not waiter.endpoint:
            self._admission.withdraw(waiter)
            self._refuse(asked)

    def _refuse(self, asked: Asked) -> None:
        self.seen[asked.flow.key].refused.append(self._now - asked.came)

    def _end(self, asked: Asked) -> None:
        self._running.remove(asked)
        self.seen[asked.flow.key].answered.append(self._now - asked.came)
        self._admission.leave("a:1", asked.flow.key)


def played(*flows: Flow, capacity: Capacity = CAPACITY) -> Play:
    play = Play(flows, capacity)
    play.run()
    return play


def test_at_twice_the_peak_high_priority_hardly_notices_low() -> None:
    per_second = 2 * PEAK / TOKENS
    high = Flow("high", Priority.HIGH, per_second / 3)
    low = Flow("low", Priority.LOW, per_second * 2 / 3)
    alone, both = played(high), played(high, low)
    assert both.seen["high"].p99 <= 1.25 * alone.seen["high"].p99
    assert not both.seen["high"].refused
    assert both.tokens / SECONDS >= 0.95 * PEAK
    refused = both.seen["low"].refused
    assert refused, "or it was no overload"
    assert max(refused) <= LOW_PATIENCE + 1e-9


def test_a_key_that_asks_for_ten_times_its_share_leaves_its_neighbour_alone() -> None:
    """A share is a rate, with a minute's worth at once; ``key_share`` bounds what that does."""
    share = 0.25 * PEAK / TOKENS
    limit = math.ceil(1.2 * 60 * share)
    quiet = Flow("quiet", Priority.DEFAULT, share, limit)
    once = Flow("greedy", Priority.DEFAULT, share, limit)
    tenfold = replace(once, per_second=10 * share)
    halves = replace(CAPACITY, key_share=0.5)
    kept, pressed = (played(quiet, other, capacity=halves) for other in (once, tenfold))
    assert pressed.seen["quiet"].p99 <= 1.10 * kept.seen["quiet"].p99
    assert not pressed.seen["quiet"].refused
    assert len(pressed.seen["greedy"].refused) > len(pressed.seen["greedy"].answered)
    # Without it the burst is the neighbour's trouble.
    kept, pressed = (played(quiet, other) for other in (once, tenfold))
    assert pressed.seen["quiet"].p99 > 1.25 * kept.seen["quiet"].p99
