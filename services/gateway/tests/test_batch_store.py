"""The transactions of batches, on SQLite and on PostgreSQL."""

import pytest
from batch_parts import order

from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.batches.domain import (
    WINDOW,
    Batch,
    BatchError,
    Line,
    LineAnswer,
    Order,
    Status,
    Usage,
)
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.store import OUTBOX
from millrace_runtime import cloudevent
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import AlreadyExists
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock

LEASE_SECONDS = 15
LINES = [Line(number, f"id-{number}") for number in range(1, 4)]


@pytest.fixture
def migrated(database: Database) -> Database:
    migrate(database, MIGRATIONS)
    return database


def a_store(database: Database, clock: FakeClock, owner: str = "elsewhere/1/1/1") -> BatchStore:
    outbox = Outbox(OUTBOX)
    return BatchStore(database, outbox, owner=owner, lease_seconds=LEASE_SECONDS, now=clock)


@pytest.fixture
def store(migrated: Database, clock: FakeClock) -> BatchStore:
    return a_store(migrated, clock)


def facts(database: Database) -> list[cloudevent.Event]:
    with database.transaction() as connection:
        pending = Outbox(OUTBOX).pending(connection, "any")
    return [cloudevent.from_json(fact.document) for fact in pending]


def started(store: BatchStore) -> tuple[Batch, Lease]:
    store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None
    store.add_lines(lease, LINES)
    return store.start(lease, "demo", len(LINES)), lease


def test_a_batch_is_kept_as_it_was_asked(migrated: Database, clock: FakeClock) -> None:
    store = a_store(migrated, clock)
    asked = Order("acme", "key-1", "/v1/responses", "file-1", {"a": "ü", "b": ""})
    batch = store.add(asked, "", "")
    assert store.get("acme", batch.id) == batch
    assert (batch.order, batch.status, batch.total) == (asked, Status.VALIDATING, 0)
    assert batch.expire_time == batch.create_time + WINDOW == clock() + WINDOW
    (fact,) = facts(migrated)
    assert fact.subject == "millrace.acme.gateway.batch.created"
    assert fact.message.batch == f"tenants/acme/batches/{batch.id}"


def test_the_same_request_makes_one_batch(store: BatchStore) -> None:
    first = store.add(order("file-1"), "request-1", "digest-1")
    assert store.add(order("file-1"), "request-1", "digest-1") == first
    with pytest.raises(AlreadyExists):
        store.add(order("file-2"), "request-1", "digest-2")
    other = store.add(order("file-1", tenant="acme"), "request-1", "digest-1")
    assert other.id != first.id


def test_pages(store: BatchStore) -> None:
    made = sorted((store.add(order("file-1"), "", "").id for _ in range(3)), reverse=True)
    store.add(order("file-1", tenant="acme"), "", "")
    assert [batch.id for batch in store.page("default", 2, "")] == made[:2]
    assert [batch.id for batch in store.page("default", 9, made[1])] == made[2:]


def test_an_answer_is_counted_once(store: BatchStore) -> None:
    batch, lease = started(store)
    answer = LineAnswer(True, '{"n": 1}', Usage(7, 2, 3, 1))
    store.answer(lease, 1, answer)
    with pytest.raises(LeaseLost):
        store.answer(lease, 1, LineAnswer(True, '{"n": 2}', Usage(7, 2, 3, 1)))
    store.answer(lease, 3, LineAnswer(False, "{}"))
    found = store.load(lease)
    assert (found.completed, found.failed, found.usage) == (1, 1, answer.usage)
    assert store.unanswered(lease) == {2}
    assert [line.answer for line in store.lines(lease, 0, 10)] == ['{"n": 1}', None, "{}"]
    assert [line.number for line in store.lines(lease, 1, 1)] == [2]
    assert batch.total == 3


def test_lines_are_noted_once(store: BatchStore) -> None:
    """Whoever takes over while the input was being noted notes all of it again."""
    store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None
    store.add_lines(lease, LINES[:2])
    store.add_lines(lease, LINES)
    assert store.unanswered(lease) == {1, 2, 3}


def test_who_lost_the_batch_writes_nothing(migrated: Database, clock: FakeClock) -> None:
    store, other = a_store(migrated, clock), a_store(migrated, clock, "elsewhere/1/2/1")
    batch, lease = started(store)
    assert other.claim() is None
    clock.advance(LEASE_SECONDS + 1)
    taken = other.claim()
    assert taken is not None and taken.epoch > lease.epoch
    before = other.load(taken)
    for write in (
        lambda: store.answer(lease, 1, LineAnswer(True, "{}")),
        lambda: store.add_lines(lease, [Line(9, "id-9")]),
        lambda: store.finalize(lease),
        lambda: store.end(lease, Status.COMPLETED, "file-2", None),
        lambda: store.fail(lease, [BatchError("x", "y")]),
        lambda: store.renew(lease),
        lambda: store.load(lease),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert other.load(taken) == before
    assert other.unanswered(taken) == {1, 2, 3}
    assert before.id == batch.id


def claimed(store: BatchStore) -> tuple[str, Lease]:
    lease = store.claim()
    assert lease is not None
    return store.load(lease).order.tenant, lease


def test_tenants_take_turns(migrated: Database, clock: FakeClock) -> None:
    """However many batches the first has, and in whichever gateway the places are."""
    one, other = a_store(migrated, clock), a_store(migrated, clock, "elsewhere/1/2/1")
    for tenant in ("busy", "busy", "busy", "late", "last"):
        one.add(order("file-1", tenant), "", "")
        clock.advance(1)
    (first, first_lease), (second, _), (third, _) = claimed(one), claimed(other), claimed(one)
    assert (first, second, third) == ("busy", "late", "last")
    standing = other.standing()
    assert {place.tenant for place in standing.places} == {"busy", "late", "last"}
    assert [(one.tenant, one.served) for one in standing.waiting] == [("busy", clock())]
    one.add(order("file-1", "late"), "", "")
    one.release(first_lease)
    assert claimed(other)[1].id == first_lease.id, "busy has fewest, and this is its oldest"


def test_whoever_was_served_just_now_is_served_again_last(
    migrated: Database, clock: FakeClock
) -> None:
    """Also when nothing of it is under way: its batch has ended, or was given back."""
    store = a_store(migrated, clock)
    for tenant in ("busy", "busy", "late"):
        store.add(order("file-1", tenant), "", "")
    clock.advance(1)
    store.fail(claimed(store)[1], [BatchError("x", "y")])
    clock.advance(1)
    tenant, lease = claimed(store)
    assert tenant == "late"
    clock.advance(1)
    store.release(lease)
    assert claimed(store)[0] == "busy"


def test_batches_that_ended_long_ago_are_forgotten(migrated: Database, clock: FakeClock) -> None:
    store = a_store(migrated, clock)
    store.add(order("file-1"), "", "")
    _, lease = claimed(store)
    failed = store.fail(lease, [BatchError("x", "y")])
    clock.advance(10)
    running, _ = started(store)
    assert failed.finish_time is not None
    assert store.forget(failed.finish_time) == 0
    assert store.forget(clock()) == 1
    assert list(store.page("default", 9, "")) == [running]
    clock.advance(WINDOW.total_seconds())
    assert store.forget(clock()) == 0, "what has not ended is never forgotten"


def test_cancelling_takes_the_batch_from_its_worker(migrated: Database, clock: FakeClock) -> None:
    store = a_store(migrated, clock)
    batch, lease = started(store)
    cancelled = store.cancel("default", batch.id)
    assert cancelled is not None and cancelled.status is Status.CANCELLING
    assert cancelled.cancel_time == clock()
    with pytest.raises(LeaseLost):
        store.answer(lease, 1, LineAnswer(True, "{}"))
    again = store.claim()
    assert again is not None
    with pytest.raises(LeaseLost):
        store.answer(again, 1, LineAnswer(True, "{}"))
    ended = store.end(again, store.load(again).ending(), None, "file-2")
    assert (ended.status, ended.error_file_id) == (Status.CANCELLED, "file-2")
    assert store.claim() is None
    assert store.cancel("default", batch.id) == ended
    assert store.cancel("acme", batch.id) is None
    kinds = [fact.fact.fact for fact in facts(migrated)]
    assert kinds == ["batch.created", "batch.cancelled"]


def test_what_is_finalizing_cannot_be_cancelled(store: BatchStore) -> None:
    batch, lease = started(store)
    finalizing = store.finalize(lease)
    assert store.cancel("default", batch.id) == finalizing
    assert finalizing.ending() is Status.EXPIRED, "not all lines have an answer"
    assert store.count_by_status() == {"finalizing": 1}


def test_a_failure_is_kept_and_told(migrated: Database, clock: FakeClock) -> None:
    store = a_store(migrated, clock)
    store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None
    errors = [BatchError("invalid_json_line", "not JSON", 3), BatchError("x", "y", None, "url")]
    failed = store.fail(lease, errors)
    assert list(failed.errors) == errors and failed.finish_time == clock()
    fact = facts(migrated)[-1]
    assert (fact.fact.fact, fact.message.message) == ("batch.failed", "not JSON")
