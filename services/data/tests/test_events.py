from data_builders import BUILT, Parts

from millrace.data.v1 import events_pb2
from millrace.topology import consumed_by, fact_of, produced_by
from millrace_data.domain import Failure
from millrace_data.events import SUBSCRIPTIONS


def test_subscriptions_are_those_of_the_topology() -> None:
    subscribed = {fact_of(s.message).type for s in SUBSCRIPTIONS}
    assert subscribed == {fact.type for fact in consumed_by("data")}


def test_every_fact_of_the_topology_is_published(parts: Parts) -> None:
    parts.upload()
    for end in ("succeed", "fail"):
        parts.create()
        lease = parts.dataset_store.claim()
        assert lease is not None
        if end == "succeed":
            parts.dataset_store.succeed(lease, BUILT)
        else:
            parts.dataset_store.fail(lease, Failure("DATASET_TOO_SMALL", "one document"))
    published = {subject for subject, _, _ in parts.facts()}
    assert published == {fact.subject("acme") for fact in produced_by("data")}


def test_dataset_ready_carries_all_that_its_consumers_need(parts: Parts) -> None:
    dataset = parts.create()
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.succeed(lease, BUILT)
    ((_, _, data),) = parts.facts()
    assert set(data) == {field.name for field in events_pb2.DatasetReady.DESCRIPTOR.fields}
    assert data["dataset"] == dataset.name
