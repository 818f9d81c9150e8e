"""Facts of a newer producer at consumers that are not upgraded yet, consumer by consumer.

During a rolling restart either side may be the newer one. What a consumer does not know it
passes over; what it cannot handle without knowing it becomes a dead letter that says why.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.topology import FACTS, Fact, consumed_by
from millrace_registry.events import Facts
from millrace_runtime import cloudevent
from millrace_runtime.bus import PoisonFact, Subscription
from millrace_runtime.cloudevent import Event, MalformedEvent
from millrace_tuner.events import Listener

CONSUMED = [(stage, fact) for fact in FACTS for stage in fact.consumers]
TIME = datetime(2030, 1, 1, tzinfo=UTC)
ADDED = {"added_later": {"deep": [1, {"er": None}]}}
NEWER_ENUM = "ADDED_LATER"


class PlayedApp:
    """Notes what it is asked to do, whatever that is."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*given: Any, **named: Any) -> None:
            self.asked.append((name, given, named))

        return note


def subscriptions(stage: str, app: Any) -> Sequence[Subscription]:
    if stage == "registry":
        return Facts(app).subscriptions()
    if stage == "tuner":
        return Listener(app).subscriptions()
    found: Sequence[Subscription] = importlib.import_module(
        f"millrace_{stage}.events"
    ).subscriptions(app)
    return found


def handled(stage: str, event: Event) -> list[tuple[Any, ...]]:
    """What the stage's application is asked to do about ``event``."""
    app = PlayedApp()
    handlers = {s.message: s.handle for s in subscriptions(stage, app)}
    handlers[type(event.message)](event)
    return app.asked


def filled(kind: type[Message]) -> Message:
    """A message with every field set, as a producer sets them."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if not field.is_repeated and field.message_type is None:
            setattr(message, field.name, scalar(field))
        elif not field.is_repeated and field.message_type.full_name != "google.protobuf.Timestamp":
            getattr(message, field.name).CopyFrom(filled(field.message_type._concrete_class))
    return message


def scalar(field: FieldDescriptor) -> Any:
    if field.type == field.TYPE_STRING:
        return NAMES.get(field.name, f"{field.name}-1")
    return True if field.type == field.TYPE_BOOL else 1


NAMES = {
    "dataset": "tenants/acme/datasets/dataset-1",
    "run": "tenants/acme/runs/run-1",
    "job": "tenants/acme/jobs/job-1",
    "checkpoint": "tenants/acme/jobs/job-1/checkpoints/ckpt-1",
    "name": "tenants/acme/jobs/job-1/checkpoints/ckpt-1",
    "compression": "tenants/acme/compressions/compression-1",
    "uri": "file:///content",
}


def document_of(fact: Fact) -> dict[str, Any]:
    event = Event("fact-1", fact, "acme", filled(fact.message), TIME)
    document: dict[str, Any] = json.loads(cloudevent.to_json(event))
    return document


def with_fields_added(value: Any) -> Any:
    """Every object of ``value``, at any depth, has a field more."""
    if isinstance(value, dict):
        return {**{key: with_fields_added(item) for key, item in value.items()}, **ADDED}
    return value


@pytest.mark.parametrize(("stage", "fact"), CONSUMED, ids=lambda it: getattr(it, "type", it))
def test_fields_and_extensions_that_are_added_change_nothing(stage: str, fact: Fact) -> None:
    document = document_of(fact)
    expected = handled(stage, cloudevent.from_json(json.dumps(document)))
    newer = {**document, "data": with_fields_added(document["data"]), "region": "eu", "sampled": 1}
    assert handled(stage, cloudevent.from_json(json.dumps(newer))) == expected
    assert expected, "the consumer does something about it"


def test_an_artifact_for_a_newer_target_is_a_dead_letter_that_says_why() -> None:
    fact = next(fact for fact in consumed_by("registry") if fact.fact == "artifact.finished")
    document = document_of(fact)
    assert handled("registry", cloudevent.from_json(json.dumps(document)))
    document["data"]["target"] = document["data"]["chosen"]["target"] = NEWER_ENUM
    with pytest.raises(PoisonFact, match="a target that this registry does not know"):
        handled("registry", cloudevent.from_json(json.dumps(document)))


@pytest.mark.parametrize("name", ["compression.rejected", "compression.failed"])
def test_a_newer_target_matters_to_nobody_who_does_not_read_it(name: str) -> None:
    fact = next(fact for fact in consumed_by("tuner") if fact.fact == name)
    document = document_of(fact)
    document["data"]["target"] = NEWER_ENUM
    assert handled("tuner", cloudevent.from_json(json.dumps(document)))


def test_a_kind_of_fact_that_is_not_known_is_malformed_and_named() -> None:
    document = {**document_of(FACTS[0]), "type": "millrace.data.v1.AddedLater"}
    with pytest.raises(MalformedEvent, match=r"millrace\.data\.v1\.AddedLater"):
        cloudevent.from_json(json.dumps(document))


def test_a_number_for_a_newer_enum_value_is_no_known_target() -> None:
    message = compressor_pb2.Compression()
    message.target = 99  # type: ignore[assignment]
    convert = importlib.import_module("millrace_registry.convert")
    assert not convert.is_known_target(message.target)
    assert not convert.is_known_target(compressor_pb2.TARGET_UNSPECIFIED)
    assert convert.is_known_target(compressor_pb2.TARGET_OPENVINO_INT8)
