"""Token buckets and allowances: what holds for every order of requests, times and ends."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from millrace_gateway.domain import KeyLimits, Principal, Priority, Role
from millrace_gateway.limits import (
    Allowance,
    Bucket,
    Limiter,
    RateLimited,
    Reservation,
    duration,
    estimated_tokens,
)

TOLERANCE = 1e-3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class AllowanceMachine(RuleBasedStateMachine):
    """Requests begin, end and are refused; limits change; time passes."""

    requests_per_minute = 7
    tokens_per_minute = 100
    concurrent = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        limits = KeyLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrent)
        self.allowance = Allowance("key-1", limits, self.clock)
        self.running: list[Reservation] = []
        # (time, requests, tokens): what was taken, less what was given back, when.
        self.flows: list[tuple[float, int, float]] = []

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(tokens=st.integers(0, 120))
    def begin(self, tokens: int) -> None:
        try:
            reservation = self.allowance.reserve(tokens)
        except RateLimited as refused:
            self._check_refusal(refused, tokens)
            return
        self.running.append(reservation)
        self.flows.append((self.clock.now, 1, tokens))

    def _check_refusal(self, refused: RateLimited, tokens: int) -> None:
        """A refusal is for a reason, and its advice is good when nobody comes between."""
        seconds = refused.retry_after_seconds
        if len(self.running) == self.concurrent:
            assert seconds is not None
        elif seconds is None:
            assert tokens > self.tokens_per_minute
        else:
            self.clock.now += seconds
            if refused.kind == "requests":
                assert self.allowance.headers()["x-ratelimit-remaining-requests"] != "0"
            else:
                self.running.append(self.allowance.reserve(tokens))
                self.flows.append((self.clock.now, 1, tokens))

    @rule(used=st.integers(0, 150), twice=st.booleans(), data=st.data())
    def end(self, used: int, twice: bool, data: st.DataObject) -> None:
        if not self.running:
            return
        index = data.draw(st.integers(0, len(self.running) - 1))
        reservation = self.running.pop(index)
        for _ in range(1 + twice):
            reservation.settle(used)
        self.flows.append((self.clock.now, 0, used - reservation.tokens))

    @invariant()
    def concurrency_is_neither_exceeded_nor_leaked(self) -> None:
        assert self.allowance.running == len(self.running) <= self.concurrent

    @invariant()
    def no_window_holds_more_than_the_burst_and_the_rate(self) -> None:
        """Also windows that end with more used than was reserved, up to that last taking."""
        for first, (start, _, _) in enumerate(self.flows):
            requests, tokens = 0, 0.0
            for end, taken_requests, taken_tokens in self.flows[first:]:
                minutes = (end - start) / 60
                requests += taken_requests
                tokens += taken_tokens
                assert requests <= self.requests_per_minute * (1 + minutes) + TOLERANCE
                if taken_requests:
                    # What is admitted is there: only settling may go below zero.
                    assert tokens <= self.tokens_per_minute * (1 + minutes) + TOLERANCE

    @invariant()
    def what_remains_is_said(self) -> None:
        headers = self.allowance.headers()
        assert 0 <= int(headers["x-ratelimit-remaining-requests"]) <= self.requests_per_minute
        assert 0 <= int(headers["x-ratelimit-remaining-tokens"]) <= self.tokens_per_minute

    def teardown(self) -> None:
        for reservation in self.running:
            reservation.settle(0)
        self.clock.now += 24 * 3600
        assert self.allowance.is_untouched(), "after a day of rest all is as at first"


AllowanceMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestAllowance = AllowanceMachine.TestCase


@given(st.integers(1, 10**6), st.floats(0, 10**5), st.integers(1, 10**6))
def test_waiting_as_told_is_enough(per_minute: int, taken: float, amount: int) -> None:
    bucket = Bucket(per_minute, 0.0)
    bucket.take(taken, 0.0)
    seconds = bucket.wait_seconds(amount, 0.0)
    if amount > per_minute:
        assert math.isinf(seconds)
    else:
        assert bucket.wait_seconds(amount, seconds) == 0
        # A tenth of so little is within what adding up floats may err by.
        is_next_to_nothing = seconds * per_minute / 60 < 1e-4
        assert is_next_to_nothing or bucket.wait_seconds(amount, seconds * 0.9) > 0


@pytest.mark.parametrize(
    ("prompt", "asked", "limit", "tokens"),
    [
        ("", 5, 100, 5),
        ("x" * 9, 5, 100, 8),
        ([1, 2, 3], 5, 100, 8),
        ("x" * 40, 1000, 100, 1010),
        ("x" * 40, None, 100, 100),
        ("x" * 40, None, 10_000, 522),
        ("x" * 800, None, 100, 200),
    ],
)
def test_what_is_reserved(prompt: Any, asked: int | None, limit: int, tokens: int) -> None:
    """An answer of open length is never why a request cannot fit; a prompt may be."""
    assert estimated_tokens(prompt, asked, limit) == tokens


def test_a_limit_that_changes_keeps_what_was_used() -> None:
    clock = Clock()
    allowance = Allowance("key-1", KeyLimits(10), clock)
    for _ in range(4):
        allowance.reserve(0)
    allowance.change(KeyLimits(5, 100))
    assert allowance.headers()["x-ratelimit-remaining-requests"] == "1"
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "100"
    allowance.change(KeyLimits(None, 100))
    assert "x-ratelimit-limit-requests" not in allowance.headers()


def test_headers_are_openais() -> None:
    clock = Clock()
    allowance = Allowance("key-1", KeyLimits(60, 600), clock)
    allowance.reserve(150)
    assert allowance.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15s",
    }


def test_advice_in_a_refusal() -> None:
    clock = Clock()
    allowance = Allowance("key-1", KeyLimits(40, 600), clock)
    for _ in range(40):
        allowance.reserve(0)
    with pytest.raises(RateLimited, match=r"Please try again in 1\.5s") as refused:
        allowance.reserve(0)
    assert refused.value.headers() == {"retry-after": "2", "retry-after-ms": "1500"}
    clock.now += 60
    with pytest.raises(RateLimited, match="Request too large") as refused:
        allowance.reserve(601)
    assert refused.value.headers() == {"x-should-retry": "false"}
    assert refused.value.kind == "tokens"


def test_a_refusal_takes_nothing() -> None:
    allowance = Allowance("key-1", KeyLimits(5, 10), Clock())
    for _ in range(20):
        with pytest.raises(RateLimited):
            allowance.reserve(11)
    assert allowance.headers()["x-ratelimit-remaining-requests"] == "5"
    assert allowance.running == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (7.66, "7.66s"), (59.9999, "1m0s"), (360, "6m0s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def principal(key_id: str, limits: KeyLimits = KeyLimits()) -> Principal:
    return Principal("t", key_id, Role.MEMBER, limits)


def test_a_key_without_limits_is_not_counted() -> None:
    limiter = Limiter()
    assert limiter.of(None) is None
    assert limiter.of(principal("key-1", KeyLimits(priority=Priority.LOW))) is None


def test_the_operators_default_holds_where_the_key_says_nothing() -> None:
    limiter = Limiter(KeyLimits(10, 1000, 4))
    allowance = limiter.of(principal("key-1", KeyLimits(tokens_per_minute=50)))
    assert allowance is not None
    assert allowance.limits == KeyLimits(10, 50, 4)
    assert limiter.of(principal("key-1", KeyLimits(tokens_per_minute=50))) is allowance


def test_keys_do_not_share() -> None:
    limiter = Limiter(KeyLimits(1), Clock())
    for key_id in ("key-1", "key-2"):
        allowance = limiter.of(principal(key_id))
        assert allowance is not None
        allowance.reserve(0)
        with pytest.raises(RateLimited):
            allowance.reserve(0)


def test_what_makes_no_difference_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace_gateway.limits._MOST_REMEMBERED", 4)
    clock = Clock()
    limiter = Limiter(KeyLimits(1), clock)
    used = limiter.of(principal("used"))
    assert used is not None
    used.reserve(0)
    limiter._forget_at = 4
    for number in range(20):
        limiter.of(principal(f"key-{number}"))
    assert len(limiter._allowances) < 8
    assert limiter.of(principal("used")) is used
