"""The transactions of webhooks, on SQLite and on PostgreSQL."""

from dataclasses import replace
from datetime import timedelta

import pytest
from webhook_parts import KEY, SUCCEEDED, an_endpoint, fact

from millrace.gateway.v1 import events_pb2 as gateway
from millrace.trainer.v1 import events_pb2 as trainer
from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.store import METADATA
from millrace_gateway.webhooks import store as webhook_store
from millrace_gateway.webhooks.domain import Answer, Change, Status, Verdict, Wish
from millrace_gateway.webhooks.queue import MOST_AT_ONE_ENDPOINT, DeliveryQueue
from millrace_gateway.webhooks.store import WebhookStore
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import Aborted, AlreadyExists, FailedPrecondition
from millrace_runtime.leases import LeaseLost
from millrace_testkit.clock import FakeClock

RETENTION_SECONDS = 30 * 24 * 3600.0
LEASE_SECONDS = 30
GOOD = Answer(0.1, 200, body="ok")
BAD = Answer(0.1, 500)
AGAIN = Verdict(Status.PENDING, 5.0)
DONE = Verdict(Status.DELIVERED)
LOST = Verdict(Status.FAILED)


@pytest.fixture
def migrated(database: Database) -> Database:
    migrate(database, MIGRATIONS)
    return database


@pytest.fixture
def store(migrated: Database, clock: FakeClock) -> WebhookStore:
    return WebhookStore(migrated, retention_seconds=RETENTION_SECONDS, now=clock)


def a_queue(database: Database, clock: FakeClock, owner: str = "elsewhere/1/1/1") -> DeliveryQueue:
    return DeliveryQueue(database, owner=owner, lease_seconds=LEASE_SECONDS, now=clock)


@pytest.fixture
def queue(migrated: Database, clock: FakeClock) -> DeliveryQueue:
    return a_queue(migrated, clock)


def test_the_migrations_make_what_the_tables_say(migrated: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with migrated.transaction() as connection:
        found = compare_metadata(MigrationContext.configure(connection), METADATA)
    assert not [one for one in found if "webhook" in str(one)]


def test_an_endpoint_is_kept_as_it_was_asked(store: WebhookStore, clock: FakeClock) -> None:
    secret = KEY.new_secret()
    wish = Wish("ü", "https://a.example/x?y=1", ["batch.*", "*"])
    made = store.add("acme", wish, secret, "request-1", "digest-1")
    assert store.get("acme", made.id) == made
    assert (made.name, made.url, made.is_enabled) == ("ü", wish.url, True)
    assert [(one.pattern, one.since) for one in made.subscribed] == [
        ("batch.*", clock()),
        ("*", clock()),
    ]
    assert list(made.secrets) == [secret]
    again = store.add("acme", wish, KEY.new_secret(), "request-1", "digest-1")
    assert again == made, "its secret too"
    with pytest.raises(AlreadyExists):
        store.add("acme", wish, KEY.new_secret(), "request-1", "digest-2")
    assert store.get("default", made.id) is None, "it is another tenant's"
    assert store.page("default", 5, "") == []


def test_a_tenant_has_so_many_endpoints_and_no_more(
    store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_store, "MOST_ENDPOINTS", 2)
    for _ in range(2):
        an_endpoint(store)
    with pytest.raises(FailedPrecondition):
        an_endpoint(store)
    an_endpoint(store, tenant="acme")


def test_a_fact_is_noted_once_for_whoever_wants_it(store: WebhookStore, clock: FakeClock) -> None:
    wanting = an_endpoint(store, "fine_tuning.job.*", "batch.completed")
    both = an_endpoint(store)
    other = an_endpoint(store, "batch.*")
    theirs = an_endpoint(store, tenant="acme")
    off = store.add("default", Wish("off", "https://a/", ["*"], False), KEY.new_secret(), "", "")
    one = fact(SUCCEEDED, clock())
    assert store.record(one) == 2
    clock.advance(60)
    assert store.record(one) == 0, "it was delivered again"
    for endpoint, count in ((wanting, 1), (both, 1), (other, 0), (theirs, 0), (off, 0)):
        assert len(store.deliveries(endpoint.id, None, 5, "")) == count
    (delivery,) = store.deliveries(wanting.id, None, 5, "")
    assert (delivery.kind, delivery.status) == ("fine_tuning.job.succeeded", Status.PENDING)
    found = store.delivery(wanting.id, delivery.id)
    assert found is not None and '"data":{"id":"ftjob-1"}' in found[1]
    assert store.delivery(both.id, delivery.id) is None


def test_what_came_before_is_not_wanted(store: WebhookStore, clock: FakeClock) -> None:
    before = fact(SUCCEEDED, clock() - timedelta(seconds=1))
    endpoint = an_endpoint(store, "fine_tuning.job.*")
    assert store.record(before) == 0
    ended = fact(gateway.BatchExpired(batch="tenants/default/batches/batch-1"), clock())
    clock.advance(10)
    on_its_way = fact(SUCCEEDED, clock())
    clock.advance(10)
    change = Change(patterns=["fine_tuning.job.succeeded", "batch.*", "fine_tuning.job.*"])
    assert store.change("default", endpoint.id, change) is not None
    assert store.record(ended) == 0, "batches are wanted since now"
    assert store.record(on_its_way) == 1, "what is wanted still is wanted since ever"
    ancient = fact(SUCCEEDED, clock())
    clock.advance(RETENTION_SECONDS + 1)
    assert store.record(ancient) == 0, "its row may have been forgotten already"


def test_a_change_of_nothing_is_none(store: WebhookStore, clock: FakeClock) -> None:
    endpoint = an_endpoint(store, "batch.*")
    clock.advance(5)
    same = Change(endpoint.name, endpoint.url, ["batch.*"], True)
    assert store.change("default", endpoint.id, same) == endpoint
    changed = store.change("default", endpoint.id, Change(name="other"))
    assert changed == replace(endpoint, name="other", update_time=clock())
    assert store.change("acme", endpoint.id, Change(name="other")) is None


def test_secrets_rotate(store: WebhookStore, clock: FakeClock) -> None:
    endpoint = an_endpoint(store)
    first, second, third = endpoint.secrets[0], KEY.new_secret(), KEY.new_secret()
    kept = store.rotate("default", endpoint.id, second, keeps_old=True)
    assert kept is not None
    assert [one.salt for one in kept.live_secrets(clock())] == [second.salt, first.salt]
    clock.advance(23 * 3600)
    store.rotate("default", endpoint.id, third, keeps_old=True)
    clock.advance(3600)
    later = store.get("default", endpoint.id)
    assert later is not None
    assert [one.salt for one in later.live_secrets(clock())] == [third.salt, second.salt]
    last = store.rotate("default", endpoint.id, first, keeps_old=False)
    assert last is not None and list(last.secrets) == [first]


def test_an_attempt_is_one_gateways(
    migrated: Database, store: WebhookStore, clock: FakeClock
) -> None:
    here, there = a_queue(migrated, clock), a_queue(migrated, clock, "elsewhere/1/2/2")
    an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    due = here.take()
    assert due is not None and there.take() is None
    clock.advance(LEASE_SECONDS + 1)
    taken = there.take()
    assert taken is not None and taken.delivery == due.delivery, "the same id, never noted twice"
    with pytest.raises(LeaseLost):
        here.conclude(due, GOOD, DONE)
    there.conclude(taken, BAD, AGAIN)
    with pytest.raises(LeaseLost):
        there.conclude(taken, BAD, AGAIN)
    (found,) = store.deliveries(due.endpoint.id, Status.PENDING, 5, "")
    assert [one.status_code for one in found.attempts] == [500]
    assert here.take() is None, "it is due in 5 s"
    clock.advance(5)
    last = here.take()
    assert last is not None and (last.delivery.id, last.delivery.tries) == (due.delivery.id, 1)
    here.conclude(last, GOOD, DONE)
    (found,) = store.deliveries(due.endpoint.id, Status.DELIVERED, 5, "")
    assert [one.number for one in found.attempts] == [1, 2] and found.next_attempt_time is None


def test_a_gateway_that_was_killed_leaves_its_attempt_at_once(
    migrated: Database, store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    from millrace_runtime import owner

    gone = owner.this_process().rpartition("/")[0] + "/1"  # another process had this id
    an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    assert a_queue(migrated, clock, gone).take() is not None
    assert queue.take() is not None


def test_what_was_broken_off_is_due_again(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    due = queue.take()
    assert due is not None
    queue.release(due)
    assert queue.take() is not None


def test_a_slow_endpoint_holds_up_its_own(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    slow, other = an_endpoint(store), an_endpoint(store, tenant="acme")
    for _ in range(MOST_AT_ONE_ENDPOINT + 3):
        store.record(fact(SUCCEEDED, clock()))
    assert queue.take() is not None
    store.record(fact(SUCCEEDED, clock(), tenant="acme"))
    second = queue.take()
    assert second is not None and second.endpoint.id == other.id, "a tenant that has none, first"
    taken = [queue.take() for _ in range(MOST_AT_ONE_ENDPOINT)]
    assert [one.endpoint.id for one in taken if one] == [slow.id] * (MOST_AT_ONE_ENDPOINT - 1)


def test_gone_disables_and_what_is_pending_fails(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    endpoint = an_endpoint(store)
    for _ in range(3):
        store.record(fact(SUCCEEDED, clock()))
    first, under_way = queue.take(), queue.take()
    assert first is not None and under_way is not None
    queue.conclude(first, Answer(0.1, 410), LOST)
    with pytest.raises(LeaseLost):
        queue.conclude(under_way, GOOD, DONE)
    found = store.get("default", endpoint.id)
    assert found is not None and found.disable_reason == "it answered 410 Gone"
    failed = store.deliveries(endpoint.id, Status.FAILED, 5, "")
    assert [len(one.attempts) for one in failed] == [0, 0, 1]
    assert queue.take() is None and store.record(fact(SUCCEEDED, clock())) == 0
    with pytest.raises(FailedPrecondition):
        store.redeliver(endpoint.id, first.delivery.id)
    clock.advance(60)
    enabled = store.change("default", endpoint.id, Change(is_enabled=True))
    assert enabled is not None and enabled.is_enabled and enabled.disable_time is None
    assert store.record(fact(SUCCEEDED, clock() - timedelta(seconds=1))) == 0
    assert store.record(fact(SUCCEEDED, clock())) == 1


@pytest.mark.parametrize("has_succeeded", [False, True])
def test_an_endpoint_that_took_nothing_for_a_whole_round(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock, has_succeeded: bool
) -> None:
    endpoint = an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    due = queue.take()
    assert due is not None
    clock.advance(10)
    if has_succeeded:
        store.record(fact(SUCCEEDED, clock()))
        other = queue.take()
        assert other is not None
        queue.conclude(other, GOOD, DONE)
    queue.conclude(due, BAD, LOST)
    found = store.get("default", endpoint.id)
    assert found is not None and found.is_enabled == has_succeeded
    if not has_succeeded:
        assert found.disable_reason is not None
        assert found.disable_reason.startswith("it took nothing since 2030-01-01 00:00 UTC")
        assert found.disable_reason.endswith("it answered 500")


def test_redelivery_begins_anew_with_the_same_id(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    endpoint = an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    due = queue.take()
    assert due is not None
    with pytest.raises(Aborted):
        store.redeliver(endpoint.id, due.delivery.id)
    queue.conclude(due, GOOD, DONE)
    clock.advance(3600)
    assert store.redeliver(endpoint.id, due.delivery.id)
    again = queue.take()
    assert again is not None and again.delivery.id == due.delivery.id
    assert (again.delivery.tries, again.delivery.attempt_count) == (0, 1)
    queue.conclude(again, BAD, AGAIN)
    (found,) = store.deliveries(endpoint.id, None, 5, "")
    assert [one.number for one in found.attempts] == [1, 2]
    assert not store.redeliver(endpoint.id, "whd-none")


def test_pages_of_deliveries(store: WebhookStore, clock: FakeClock) -> None:
    endpoint = an_endpoint(store, "millrace.trainer.*")
    for number in range(5):
        run = trainer.RunStarted(run=f"tenants/default/runs/run-{number}")
        store.record(fact(run, clock()))
    everything = [one.id for one in store.deliveries(endpoint.id, None, 9, "")]
    assert len(everything) == 5 and everything == sorted(everything, reverse=True)
    page = store.deliveries(endpoint.id, None, 2, everything[1])
    assert [one.id for one in page] == everything[2:4]


def test_an_endpoint_goes_with_its_history(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    endpoint = an_endpoint(store)
    assert store.has_any()
    store.record(fact(SUCCEEDED, clock()))
    store.record(fact(SUCCEEDED, clock()))
    done, under_way = queue.take(), queue.take()
    assert done is not None and under_way is not None
    queue.conclude(done, GOOD, DONE)
    assert not store.remove("acme", endpoint.id)
    assert store.remove("default", endpoint.id) and not store.has_any()
    with pytest.raises(LeaseLost):
        queue.conclude(under_way, GOOD, DONE)
    assert store.count_by_status() == {} and not store.remove("default", endpoint.id)


def test_what_has_ended_is_forgotten(
    store: WebhookStore, queue: DeliveryQueue, clock: FakeClock
) -> None:
    endpoint = an_endpoint(store)
    store.record(fact(SUCCEEDED, clock()))
    store.record(fact(SUCCEEDED, clock()))
    due = queue.take()
    assert due is not None
    queue.conclude(due, GOOD, DONE)
    assert store.forget() == 0
    clock.advance(RETENTION_SECONDS + 1)
    assert store.forget() == 1, "what is pending is not"
    assert [one.status for one in store.deliveries(endpoint.id, None, 5, "")] == [Status.PENDING]
