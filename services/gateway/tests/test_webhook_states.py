"""Deliveries, whatever happens to them: facts that come twice, gateways that are killed or lie
still, receivers that fail, owners who disable, enable, redeliver."""

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import delete
from webhook_parts import SUCCEEDED, an_endpoint, fact

from millrace_gateway.store import (
    METADATA,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_DELIVERIES,
    WEBHOOK_ENDPOINTS,
)
from millrace_gateway.webhooks.domain import (
    LONGEST_RETRY_AFTER_SECONDS,
    Answer,
    Change,
    Delivery,
    Status,
    judge,
)
from millrace_gateway.webhooks.queue import DeliveryQueue, Due
from millrace_gateway.webhooks.store import WebhookStore
from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import Aborted, FailedPrecondition
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock

LEASE_SECONDS = 30
DELAYS_SECONDS = (5.0, 60.0)
DATABASE: list[Database] = []
GATEWAYS = st.integers(0, 1)
STATUSES = st.sampled_from([200, 204, 301, 404, 410, 429, 500, None])


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    """One database in memory for all; each life begins with empty tables."""
    database = open_database("sqlite:///:memory:")
    METADATA.create_all(database.engine)
    DATABASE.append(database)
    yield
    DATABASE.clear()
    database.close()


@given(
    status=STATUSES,
    tries=st.integers(1, 12),
    delays=st.lists(st.floats(0, 1e5), max_size=10),
    jitter=st.floats(0.9, 1.1),
    asked=st.none() | st.floats(0, 1e9),
)
def test_what_follows_from_an_answer(
    status: int | None, tries: int, delays: list[float], jitter: float, asked: float | None
) -> None:
    answer = Answer(0.1, status, retry_after_seconds=asked)
    verdict = judge(answer, tries, delays, jitter)
    assert (verdict.status is Status.DELIVERED) == (status in (200, 204))
    assert (verdict.status is Status.PENDING) == (verdict.retry_seconds is not None)
    if verdict.retry_seconds is not None:
        assert tries <= len(delays) and status != 410
        assert verdict.retry_seconds >= min(asked or 0, LONGEST_RETRY_AFTER_SECONDS)
        assert verdict.retry_seconds >= delays[tries - 1] * 0.9


class Deliveries(RuleBasedStateMachine):
    """Two gateways, one endpoint, and what must hold between any two transactions.

    ``posted`` is what receivers have seen: every attempt that began, by delivery.
    """

    def __init__(self) -> None:
        super().__init__()
        with DATABASE[0].transaction() as connection:
            for table in (WEBHOOK_ATTEMPTS, WEBHOOK_DELIVERIES, WEBHOOK_ENDPOINTS):
                connection.execute(delete(table))
        self.clock = FakeClock()
        self.store = WebhookStore(DATABASE[0], retention_seconds=1e9, now=self.clock)
        self.queues = [
            DeliveryQueue(
                DATABASE[0],
                owner=f"elsewhere/1/{number}/1",
                lease_seconds=LEASE_SECONDS,
                now=self.clock,
            )
            for number in range(2)
        ]
        self.endpoint = an_endpoint(self.store)
        self.held: list[list[Due]] = [[], []]
        self.facts: list[object] = []
        self.expected: set[str] = set()
        self.history: dict[str, tuple[object, ...]] = {}

    @rule()
    def a_fact_comes(self) -> None:
        found = fact(SUCCEEDED, self.clock())
        self.facts.append(found)
        assert self.store.record(found) == self._is_enabled()
        self._note_new()

    @rule(which=st.integers(0, 9))
    def a_fact_comes_again(self, which: int) -> None:
        if self.facts:
            before = len(self._all())
            again = self.store.record(self.facts[which % len(self.facts)])  # type: ignore[arg-type]
            assert len(self._all()) == before + again
            self._note_new()

    @rule(gateway=GATEWAYS)
    def takes(self, gateway: int) -> None:
        due = self.queues[gateway].take()
        if due is not None:
            live = [one for held in self.held for one in held if one.lease.expires >= self.clock()]
            assert due.delivery.id not in {
                one.delivery.id for one in live if self._epoch_holds(one)
            }, "one attempt at a time"
            assert due.delivery.status is Status.PENDING
            self.held[gateway].append(due)

    @rule(gateway=GATEWAYS, status=STATUSES)
    def ends(self, gateway: int, status: int | None) -> None:
        if not self.held[gateway]:
            return
        due = self.held[gateway].pop(0)
        answer = Answer(0.1, status, error=None if status else "unreachable")
        verdict = judge(answer, due.delivery.tries + 1, DELAYS_SECONDS, 1.0)
        before = self._one(due.delivery.id)
        try:
            attempt = self.queues[gateway].conclude(due, answer, verdict)
        except LeaseLost:
            assert self._one(due.delivery.id) == before, "nothing was written"
            return
        after = self._one(due.delivery.id)
        assert after.attempts[-1].number == attempt.number == len(before.attempts) + 1
        # The end of the endpoint, too, ends what would have been tried again.
        assert after.status is verdict.status or not self._is_enabled()

    @rule(gateway=GATEWAYS)
    def is_killed(self, gateway: int) -> None:
        self.held[gateway].clear()

    @rule(gateway=GATEWAYS)
    def breaks_off(self, gateway: int) -> None:
        if self.held[gateway]:
            self.queues[gateway].release(self.held[gateway].pop())

    @rule(seconds=st.sampled_from([1, 5, LEASE_SECONDS + 1, 100]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(is_enabled=st.booleans())
    def is_switched(self, is_enabled: bool) -> None:
        change = Change(is_enabled=is_enabled)
        changed = self.store.change("default", self.endpoint.id, change)
        assert changed is not None and changed.is_enabled == is_enabled

    @rule(which=st.integers(0, 9))
    def is_redelivered(self, which: int) -> None:
        if not self.expected:
            return
        chosen = sorted(self.expected)[which % len(self.expected)]
        try:
            assert self.store.redeliver(self.endpoint.id, chosen)
        except FailedPrecondition:
            assert not self._is_enabled()
        except Aborted:
            assert self._is_enabled()
        else:
            assert self._one(chosen).status is Status.PENDING

    @invariant()
    def nothing_is_lost_and_history_stays(self) -> None:
        found = {one.id: one for one in self._all()}
        assert set(found) == self.expected
        for identifier, one in found.items():
            numbers = [attempt.number for attempt in one.attempts]
            assert numbers == list(range(1, len(numbers) + 1)) and one.attempt_count == len(numbers)
            assert (one.status is Status.PENDING) == (one.next_attempt_time is not None)
            assert one.tries <= len(DELAYS_SECONDS) + 1
            before = self.history.get(identifier, ())
            assert tuple(one.attempts[: len(before)]) == before, "what was noted stays"
            self.history[identifier] = tuple(one.attempts)
        if not self._is_enabled():
            assert all(one.status is not Status.PENDING for one in found.values())

    def teardown(self) -> None:
        """In the end all that is pending is delivered, by one gateway and a receiver that works."""
        self.clock.advance(24 * 3600)
        while (due := self.queues[0].take()) is not None:
            self.queues[0].conclude(due, Answer(0.1, 200), judge(Answer(0.1, 200), 1, (), 1.0))
        assert all(one.status is not Status.PENDING for one in self._all())

    def _note_new(self) -> None:
        self.expected |= {one.id for one in self._all()}
        assert len(self.expected) <= len(self.facts), "one delivery a fact"

    def _all(self) -> list[Delivery]:
        return list(self.store.deliveries(self.endpoint.id, None, 1000, ""))

    def _one(self, identifier: str) -> Delivery:
        found = self.store.delivery(self.endpoint.id, identifier)
        assert found is not None
        return found[0]

    def _epoch_holds(self, due: Due) -> bool:
        query = WEBHOOK_DELIVERIES.select().where(WEBHOOK_DELIVERIES.c.id == due.delivery.id)
        with DATABASE[0].transaction() as connection:
            row = connection.execute(query).one()
        return bool(row.epoch == due.lease.epoch and row.lease_owner)

    def _is_enabled(self) -> bool:
        found = self.store.get("default", self.endpoint.id)
        assert found is not None
        return found.is_enabled


Deliveries.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestDeliveries = Deliveries.TestCase
