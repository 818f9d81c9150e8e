"""Passive health: what holds for every order of requests, answers, failures and times."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from millrace_gateway.health import Health

MODEL = "t.demo"
PLACES = [(version, endpoint) for version in (1, 2) for endpoint in ("a:1", "b:1")]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class HealthMachine(RuleBasedStateMachine):
    """Requests are asked only where a place is not ejected, as the gateway does."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.health = Health(self.clock)
        self.failed_since_answer: set[tuple[int, str]] = set()

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(place=st.sampled_from(PLACES), works=st.booleans())
    def ask(self, place: tuple[int, str], works: bool) -> None:
        was_ejected = place in self.failed_since_answer
        self.health.asked(MODEL, *place)
        if was_ejected:
            assert place in self.health.ejected(MODEL), "while one tries it the others do not"
        if works:
            self.health.answered(MODEL, *place)
            self.failed_since_answer.discard(place)
        else:
            self.health.failed(MODEL, *place)
            self.failed_since_answer.add(place)
            assert place in self.health.ejected(MODEL)

    @rule(place=st.sampled_from(PLACES))
    def be_cancelled(self, place: tuple[int, str]) -> None:
        self.health.asked(MODEL, *place)

    @invariant()
    def only_what_failed_is_ejected_and_never_for_long(self) -> None:
        ejected = self.health.ejected(MODEL)
        assert set(ejected) <= self.failed_since_answer
        assert all(self.clock.now < until <= self.clock.now + 30 for until in ejected.values())
        assert not self.health.ejected("t.other")

    def teardown(self) -> None:
        self.clock.now += 30.001
        assert self.health.ejected(MODEL) == {}, "each is tried again in the end"


HealthMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestHealth = HealthMachine.TestCase


def test_the_time_grows_with_each_failed_try() -> None:
    clock = Clock()
    health = Health(clock)
    times = []
    for _ in range(7):
        health.asked(MODEL, 1, "a:1")
        health.failed(MODEL, 1, "a:1")
        until = health.ejected(MODEL)[1, "a:1"]
        times.append(until - clock.now)
        clock.now = until
    assert times == [1, 2, 4, 8, 16, 30, 30]
    health.asked(MODEL, 1, "a:1")
    health.answered(MODEL, 1, "a:1")
    health.failed(MODEL, 1, "a:1")
    assert health.ejected(MODEL)[1, "a:1"] == clock.now + 1, "it begins anew"


def test_requests_that_fail_together_are_one_failure() -> None:
    clock = Clock()
    health = Health(clock)
    for _ in range(50):
        health.asked(MODEL, 1, "a:1")
    for _ in range(50):
        health.failed(MODEL, 1, "a:1")
    assert health.ejected(MODEL)[1, "a:1"] == clock.now + 1


def test_versions_that_are_gone_are_forgotten() -> None:
    clock = Clock()
    health = Health(clock)
    for version in range(2500):
        health.failed(MODEL, version, "a:1")
        clock.now += 1
    assert len(health._ejections) <= 1001
