from trainer_builders import DATASET, LATE, Parts, checkpoint_of

from millrace.data.v1 import events_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.topology import consumed_by, fact_of, produced_by
from millrace_runtime.cloudevent import Event
from millrace_trainer.domain import Failure, State
from millrace_trainer.events import subscriptions


def deliver(parts: Parts, message: events_pb2.DatasetReady | events_pb2.DatasetFailed) -> None:
    """As the bus does."""
    (subscription,) = [s for s in subscriptions(parts.app) if s.message is type(message)]
    fact = fact_of(type(message))
    subscription.handle(Event("event-1", fact, "acme", message, parts.clock(), ""))


def test_subscriptions_are_those_of_the_topology(parts: Parts) -> None:
    subscribed = {fact_of(s.message).type for s in subscriptions(parts.app)}
    assert subscribed == {fact.type for fact in consumed_by("trainer")}


def test_every_fact_of_the_topology_is_published(parts: Parts) -> None:
    parts.app.cancel("acme", parts.create().id)
    for end in ("succeed", "fail"):
        run = parts.create()
        lease = parts.store.claim()
        assert lease is not None
        parts.store.start(lease)
        parts.store.add_checkpoint(lease, checkpoint_of(run, id=f"ckpt-{end}"), 1)
        if end == "succeed":
            parts.store.succeed(lease)
        else:
            parts.store.fail(lease, Failure("TRAINING_DIVERGED", "nan"))
    published = {subject for subject, _, _ in parts.facts()}
    assert published == {fact.subject("acme") for fact in produced_by("trainer")}


def test_dataset_ready_lets_runs_begin_however_often_it_comes(parts: Parts) -> None:
    run = parts.create(LATE)
    content = lifecycle_pb2.Content(
        uri=DATASET.uri, digest=DATASET.digest, size_bytes=DATASET.size_bytes
    )
    for _ in range(2):
        deliver(parts, events_pb2.DatasetReady(dataset=LATE, content=content))
    assert parts.now(run).dataset == DATASET
    assert parts.facts() == []


def test_dataset_failed_fails_runs_once(parts: Parts) -> None:
    run = parts.create(LATE)
    failure = lifecycle_pb2.Failure(reason="DATASET_TOO_SMALL", message="one document")
    for _ in range(2):
        deliver(parts, events_pb2.DatasetFailed(dataset=LATE, failure=failure))
    assert parts.now(run).state is State.FAILED
    assert parts.subjects() == ["run.failed"]
