"""Every fact survives the trip as a CloudEvent."""

import json
from datetime import UTC, datetime

import pytest

from millrace.topology import FACTS, Fact, fact_of
from millrace_runtime import cloudevent
from millrace_runtime.cloudevent import Event, MalformedEvent

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def event_of(fact: Fact) -> Event:
    return Event(
        id="fact-1",
        fact=fact,
        tenant="acme",
        message=fact.message(),
        time=datetime(2030, 1, 1, tzinfo=UTC),
        traceparent=PARENT,
    )


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.type)
def test_what_is_written_is_read_again(fact: Fact) -> None:
    event = event_of(fact)
    assert cloudevent.from_json(cloudevent.to_json(event)) == event
    assert fact_of(fact.message) is fact


def test_a_field_from_a_newer_producer_does_not_break_an_older_consumer() -> None:
    document = json.loads(cloudevent.to_json(event_of(FACTS[0])))
    document["data"]["added_later"] = {"deep": [1]}
    assert cloudevent.from_json(json.dumps(document)) == event_of(FACTS[0])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"type": "x"}', b"\xff"])
def test_anything_else_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedEvent):
        cloudevent.from_json(content)


def test_subjects_are_unique() -> None:
    assert len({fact.subject("acme") for fact in FACTS}) == len(FACTS)
