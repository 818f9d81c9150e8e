"""How many gateways there are, and what each has of what is theirs together."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.admission import Admission, Capacity, Waiter
from millrace_gateway.domain import KeyLimits, Principal, Priority, Role
from millrace_gateway.limits import Bucket, Limiter, RateLimited
from millrace_gateway.replicas import MISSED_LOOKS, Replicas, Roll
from millrace_runtime.database import Database, migrate

A, B = "host/1/10/100", "host/2/20/200"
ALIKE = dict.fromkeys(Priority, 1.0)


class Parts:
    """Something that gateways share; it notes its part."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def share(self, gateways: int) -> None:
        self.told.append(gateways)


def never(_gateway: str) -> bool:
    return False


def replicas(database: Database, gateway: str) -> Replicas:
    return Replicas(database, gateway, Roll(never))


@given(st.lists(st.frozensets(st.sampled_from("abc")), max_size=40))
def test_a_gateway_is_gone_once_it_was_late_too_often(history: list[frozenset[str]]) -> None:
    """``history``: who has said something since the look before."""
    roll, beats, silent = Roll(never), dict.fromkeys("abc", 1), dict.fromkeys("abc", -1)
    for spoke in history:
        for gateway in "abc":
            beats[gateway] += gateway in spoke
            silent[gateway] = 0 if gateway in spoke or silent[gateway] < 0 else silent[gateway] + 1
        expected = {gateway for gateway in "abc" if silent[gateway] > MISSED_LOOKS}
        assert roll.look(dict(beats)) == expected


def test_a_process_that_was_seen_to_end_is_gone_at_once() -> None:
    assert Roll(lambda gateway: gateway == B).look({A: 1, B: 1}) == {B}


def test_gateways_see_one_another(database: Database) -> None:
    migrate(database, MIGRATIONS)
    one, other = replicas(database, A), replicas(database, B)
    assert [one.beat(), other.beat(), one.beat()] == [1, 2, 2]
    for _ in range(MISSED_LOOKS):
        assert one.beat() == 2, "a gateway may be late"
    assert [one.beat(), one.beat()] == [1, 1], "the other is gone, and its row with it"
    assert [other.beat(), one.beat()] == [2, 2], "it was only stopped"


def test_a_gateway_that_drains_has_left(database: Database) -> None:
    migrate(database, MIGRATIONS)
    one, other, parts = replicas(database, A), replicas(database, B), Parts()
    other.beat()

    async def life() -> None:
        draining = asyncio.Event()
        running = asyncio.create_task(one.run(draining, parts))
        while one.count != 2:
            await asyncio.sleep(0.01)
        draining.set()
        await running

    asyncio.run(life())
    assert parts.told == [2]
    assert other.beat() == 1


def test_without_the_database_nobody_is_taken_for_gone(database: Database) -> None:
    migrate(database, MIGRATIONS)
    broken = Failing(database)
    one, other, parts = replicas(broken, A), replicas(database, B), Parts()
    other.beat()

    async def life() -> None:
        await one.look(parts)
        broken.fails = True
        for _ in range(2 * MISSED_LOOKS):
            await one.look(parts)
        broken.fails = False
        await one.look(parts)

    asyncio.run(life())
    assert one.count == 2 and parts.told == [2]


class Failing(Database):
    """A database that does not answer while it ``fails``."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.engine)
        self.fails = False

    @contextmanager
    def transaction(self) -> Iterator[object]:  # type: ignore[override]
        if self.fails:
            raise OperationalError("", None, Exception("away"))
        with super().transaction() as connection:
            yield connection


@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 20), st.floats(0.01, 1))
def test_the_parts_are_the_whole_but_for_rounding(
    places: int, gateways: int, queue: int, key_share: float
) -> None:
    whole = Capacity(places, ALIKE, dict.fromkeys(Priority, queue), key_share)
    part = whole.part(gateways)
    assert places <= part.places * gateways < places + gateways
    assert queue <= part.queues[Priority.LOW] * gateways < queue + gateways
    assert part.key_limit() >= 1
    assert whole.part(1) == whole


def test_those_who_wait_enter_when_a_gateway_has_gone() -> None:
    whole = Capacity(4, ALIKE, dict.fromkeys(Priority, 4))
    admission = Admission(whole.part(2))
    assert [admission.enter("e", Priority.DEFAULT) for _ in range(3)] == [True, True, False]
    woken: list[int] = []
    for number in range(3):
        waiter = Waiter(["e"], Priority.DEFAULT, "", lambda number=number: woken.append(number))
        if number == 2:
            admission.change(whole)
            assert woken == [0, 1]
        admission.wait(waiter)
    assert admission.in_progress == {"e": 4} and admission.waiting(Priority.DEFAULT) == 1


def test_nobody_is_put_out_when_a_gateway_comes() -> None:
    whole = Capacity(4, ALIKE, dict.fromkeys(Priority, 4))
    admission = Admission(whole)
    assert all(admission.enter("e", Priority.HIGH) for _ in range(4))
    admission.change(whole.part(2))
    for left in (3, 2):
        admission.leave("e")
        assert admission.in_progress == {"e": left} and not admission.enter("e", Priority.HIGH)
    admission.leave("e")
    assert admission.enter("e", Priority.HIGH)


class Gateways:
    """The limiters of several, and their clock."""

    def __init__(self, count: int, limits: KeyLimits) -> None:
        self.now = 1000.0
        self.limiters = [Limiter(monotonic_seconds=lambda: self.now) for _ in range(count)]
        self.principal = Principal("default", "key-1", Role.MEMBER, limits=limits)
        for limiter in self.limiters:
            limiter.share(count)

    def begins(self, gateway: int, tokens: int = 0) -> bool:
        allowance = self.limiters[gateway].of(self.principal)
        assert allowance is not None
        try:
            allowance.reserve(tokens)
        except RateLimited:
            return False
        return True


@given(st.integers(1, 20), st.integers(1, 6), st.sampled_from(["requests", "concurrent"]))
def test_what_comes_at_once_is_held_to_the_limit(limit: int, count: int, kind: str) -> None:
    limits = KeyLimits(limit) if kind == "requests" else KeyLimits(concurrent_generations=limit)
    gateways = Gateways(count, limits)
    begun = sum(gateways.begins(number % count) for number in range(2 * count * (limit + 1)))
    assert limit <= begun < limit + count


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 120), st.floats(0, 60)),
        min_size=1,
        max_size=60,
    )
)
def test_tokens_over_time(requests: list[tuple[int, int, float]]) -> None:
    """Each may let in one request that is larger than its part, and pays it off."""
    limit, gateways = 100, Gateways(3, KeyLimits(tokens_per_minute=100))
    start, taken = gateways.now, 0
    for gateway, tokens, seconds in requests:
        gateways.now += seconds
        begun = gateways.begins(gateway, tokens)
        assert not (begun and tokens > limit)
        taken += tokens if begun else 0
        minutes = (gateways.now - start) / 60
        assert taken <= 3 * (math.ceil(limit / 3) * minutes + limit) + 0.01


def test_a_request_larger_than_a_part_is_let_in_and_paid_for() -> None:
    gateways = Gateways(4, KeyLimits(tokens_per_minute=100))
    assert gateways.begins(0, 100), "as it would be at a single gateway"
    gateways.now += 179  # 25 a minute: 75 are owed, and a token needs one more
    assert not gateways.begins(0, 1)
    gateways.now += 10
    assert gateways.begins(0, 1)


def test_what_was_used_counts_when_gateways_come_and_go() -> None:
    gateways = Gateways(1, KeyLimits(10))
    assert all(gateways.begins(0) for _ in range(8))
    (limiter,) = gateways.limiters
    limiter.share(2)
    assert not gateways.begins(0), "of its part of 5 it has used 8"
    limiter.share(1)
    assert [gateways.begins(0) for _ in range(3)] == [True, True, False]


def test_it_is_said_whose_limit_it_is() -> None:
    gateways = Gateways(2, KeyLimits(3, 10, 4))
    allowance = gateways.limiters[0].of(gateways.principal)
    assert allowance is not None and allowance.tokens_per_minute == 5
    assert allowance.headers()["x-ratelimit-limit-requests"] == "2"
    for _ in range(2):
        allowance.reserve(0)
    with pytest.raises(RateLimited, match="Limit 4 in all at 2 gateways, In progress 2"):
        allowance.reserve(0)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 100))
def test_a_bucket_waits_no_longer_than_it_must(part: int, factor: int, amount: int) -> None:
    bucket = Bucket(part, 0.0, part * factor)
    bucket.take(part, 0.0)
    seconds = bucket.wait_seconds(amount, 0.0)
    assert math.isinf(seconds) == (amount > part * factor)
    if not math.isinf(seconds):
        assert seconds == pytest.approx(60.0 * min(amount, part) / part)
        assert not bucket.wait_seconds(amount, seconds + 1e-6)
