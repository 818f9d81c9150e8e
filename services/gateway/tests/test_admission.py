"""Places and queues: what holds for every order of arrivals, ends and cancellations."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from millrace_gateway.admission import Admission, Capacity, QueueFull, Waiter
from millrace_gateway.domain import Priority

HIGH, DEFAULT, LOW = Priority.HIGH, Priority.DEFAULT, Priority.LOW
ENDPOINTS = ("a:1", "b:1", "c:1")
KEYS = ("key-1", "key-2", "key-3")
CAPACITY = Capacity(
    places=4,
    shares={HIGH: 1.0, DEFAULT: 0.75, LOW: 0.5},
    queues={HIGH: 5, DEFAULT: 4, LOW: 2},
    key_share=0.6,
)


class AdmissionMachine(RuleBasedStateMachine):
    """Generations come, wait, leave the queue, begin and end, at three endpoints; gateways too."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = CAPACITY
        self.admission = Admission(CAPACITY)
        self.counts_before = Counter[object]()
        self.inside: list[tuple[str, str]] = []  # endpoint, key
        self.waiting: list[Waiter] = []
        self.woken: list[Waiter] = []

    @rule(
        endpoints=st.lists(st.sampled_from(ENDPOINTS), min_size=1, max_size=3, unique=True),
        priority=st.sampled_from(Priority),
        key=st.sampled_from(KEYS),
    )
    def come(self, endpoints: list[str], priority: Priority, key: str) -> None:
        if self.admission.enter(endpoints[0], priority, key):
            self.inside.append((endpoints[0], key))
            return
        before = list(self.waiting)
        waiter = Waiter(tuple(endpoints), priority, key, lambda: self.woken.append(waiter))
        try:
            self.admission.wait(waiter)
        except QueueFull:
            assert self.held(priority) >= self.capacity.queues[priority]
            return
        self.waiting.append(waiter)
        self.settle_woken()
        put_out = set(before) - set(self.waiting)
        assert len(put_out) <= 1
        for other in put_out:
            theirs = Counter(one.key for one in self.waiting if one.priority is priority)
            assert theirs[other.key] >= theirs[key], "only who had more waiting is put out"

    @rule(gateways=st.integers(1, 3))
    def gateways_come_or_go(self, gateways: int) -> None:
        self.capacity = CAPACITY.part(gateways)
        self.admission.change(self.capacity)
        self.settle_woken()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.inside:
            endpoint, key = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
            self.admission.leave(endpoint, key)
            self.settle_woken()

    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        if self.waiting:
            waiter = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
            self.admission.withdraw(waiter)
            self.settle_woken()

    @rule(data=st.data())
    def go_away_just_as_a_place_is_given(self, data: st.DataObject) -> None:
        """A client leaves between the giving of its place and its taking."""
        if self.inside:
            endpoint, key = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
            self.admission.leave(endpoint, key)
            for waiter in self.woken:
                self.waiting.remove(waiter)
            woken, self.woken = self.woken, []
            for waiter in woken:
                assert waiter.endpoint == endpoint
                self.admission.withdraw(waiter)
            self.settle_woken()

    def settle_woken(self) -> None:
        woken, self.woken = self.woken, []
        assert len(set(map(id, woken))) == len(woken), "nobody is woken twice"
        for waiter in woken:
            self.waiting.remove(waiter)
            if waiter.endpoint:
                assert waiter.endpoint in waiter.endpoints
                self.inside.append((waiter.endpoint, waiter.key))

    def held(self, priority: Priority) -> int:
        return sum(waiter.priority is priority for waiter in self.waiting)

    @invariant()
    def what_is_counted_is_what_is(self) -> None:
        assert self.admission.in_progress == Counter(endpoint for endpoint, _ in self.inside)
        for priority in Priority:
            assert self.admission.waiting(priority) == self.held(priority)

    @invariant()
    def capacity_is_never_exceeded(self) -> None:
        """When it has become less, what was there ends by and by, and nothing is added."""
        most: dict[object, int] = {
            **dict.fromkeys(ENDPOINTS, self.capacity.places),
            **dict.fromkeys(product(ENDPOINTS, KEYS), self.capacity.key_limit()),
            **self.capacity.queues,
        }
        counts: Counter[object] = Counter(self.admission.in_progress)
        counts.update(self.inside)
        counts.update(waiter.priority for waiter in self.waiting)
        for what, count in counts.items():
            assert count <= max(most[what], self.counts_before[what])
        self.counts_before = counts

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        limits, key_limit = self.capacity.limits(), self.capacity.key_limit()
        for waiter in self.waiting:
            for endpoint in waiter.endpoints:
                assert (
                    self.admission.in_progress.get(endpoint, 0) >= limits[waiter.priority]
                    or self.inside.count((endpoint, waiter.key)) >= key_limit
                )

    def teardown(self) -> None:
        while self.inside:
            self.admission.leave(*self.inside.pop())
            self.settle_woken()
        assert self.waiting == []
        assert self.admission.in_progress == {}


AdmissionMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestAdmission = AdmissionMachine.TestCase


def full(places: int = 1, **queues: int) -> tuple[Admission, list[str]]:
    """An admission whose one endpoint is full, and a list of who was woken."""
    lengths = {priority: queues.get(priority.value, 50) for priority in Priority}
    admission = Admission(Capacity(places, {HIGH: 1, DEFAULT: 1, LOW: 1}, lengths))
    for _ in range(places):
        assert admission.enter("a:1", HIGH)
    return admission, []


def queue(admission: Admission, woken: list[str], key: str, priority: Priority = DEFAULT) -> Waiter:
    waiter = Waiter(("a:1",), priority, key, lambda: woken.append(key))
    admission.wait(waiter)
    return waiter


def end_all(admission: Admission, woken: list[str], count: int) -> None:
    """The one place is given back so many times, each time by whoever had it."""
    for place in range(count):
        admission.leave("a:1", woken[place - 1] if place else "")


def test_a_class_leaves_room_for_those_above() -> None:
    admission = Admission(CAPACITY)
    for priority, count in ((LOW, 2), (DEFAULT, 1), (HIGH, 1)):
        entered = [admission.enter("a:1", priority, str(each)) for each in range(count + 1)]
        assert entered == [True] * count + [False]


@pytest.mark.parametrize(
    ("places", "limits"), [(1, (1, 1, 1)), (2, (2, 2, 1)), (10, (10, 9, 5)), (64, (64, 58, 32))]
)
def test_shares_are_rounded_up(places: int, limits: tuple[int, int, int]) -> None:
    capacity = Capacity(places, {HIGH: 1.0, DEFAULT: 0.9, LOW: 0.5}, {})
    assert tuple(capacity.limits().values()) == limits


def test_a_lower_class_never_has_more_than_a_higher() -> None:
    capacity = Capacity(10, {HIGH: 1.0, DEFAULT: 0.3, LOW: 0.8}, {})
    assert tuple(capacity.limits().values()) == (10, 3, 3)


def test_high_goes_first_however_late_it_came() -> None:
    admission, woken = full()
    for key, priority in (("low", LOW), ("default", DEFAULT), ("high", HIGH)):
        queue(admission, woken, key, priority)
    end_all(admission, woken, 3)
    assert woken == ["high", "default", "low"]


def test_keys_have_their_turns() -> None:
    """One key's flood does not keep another's single request waiting behind it."""
    admission, woken = full()
    for _ in range(6):
        queue(admission, woken, "flood")
    for key in ("quiet", "other", "quiet"):
        queue(admission, woken, key)
    end_all(admission, woken, 9)
    assert woken == ["flood", "quiet", "other", "flood", "quiet", *["flood"] * 4]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40))
def test_nobody_is_passed_over_twice_by_the_same_key(arrivals: list[str]) -> None:
    admission, woken = full()
    for key in arrivals:
        queue(admission, woken, key)
    end_all(admission, woken, len(arrivals))
    assert Counter(woken) == Counter(arrivals)
    for key in set(arrivals):
        turns = [place for place, other in enumerate(woken) if other == key]
        for before, after in zip([-1, *turns], turns, strict=False):
            between = woken[before + 1 : after]
            assert len(between) == len(set(between)), "one turn each, until it is one's own"


def test_a_key_fills_no_more_than_its_part() -> None:
    """Beyond it waits; the place that it may not have is another's at once."""
    lengths = dict.fromkeys(Priority, 50)
    admission = Admission(Capacity(4, dict.fromkeys(Priority, 1.0), lengths, key_share=0.5))
    assert [admission.enter("a:1", DEFAULT, "greedy") for _ in range(3)] == [True, True, False]
    woken: list[str] = []
    queue(admission, woken, "greedy")
    assert [admission.enter("a:1", DEFAULT, "quiet") for _ in range(2)] == [True, True]
    queue(admission, woken, "other")
    admission.leave("a:1", "quiet")
    assert woken == ["other"], "not the greedy one's, who came before"
    admission.leave("a:1", "greedy")
    assert woken == ["other", "greedy"]
    assert admission.enter("b:1", DEFAULT, "greedy"), "each endpoint counts for itself"


def test_a_full_queue_is_shared_too() -> None:
    admission, woken = full(default=4)
    flood = [queue(admission, woken, "flood") for _ in range(4)]
    with pytest.raises(QueueFull):
        queue(admission, woken, "flood")
    quiet = [queue(admission, woken, "quiet") for _ in range(2)]
    assert woken == ["flood", "flood"], "the newest of the flood are put out"
    assert [waiter.endpoint for waiter in flood] == [""] * 4
    with pytest.raises(QueueFull):
        queue(admission, woken, "quiet")
    assert admission.waiting(DEFAULT) == 4
    admission.withdraw(flood[-1])  # already put out: nothing is left to undo
    admission.withdraw(quiet[0])
    assert admission.waiting(DEFAULT) == 3


def test_without_a_queue_nobody_waits() -> None:
    admission, woken = full(low=0)
    with pytest.raises(QueueFull):
        queue(admission, woken, "key-1", LOW)
