"""Facts as webhooks tell them: which type each has, and what is posted.

Where OpenAI has an event, a fact is told in its shape, so that the ``openai`` package's
``webhooks.unwrap`` makes its own type of it. All others have their CloudEvents type as type and
their data as data.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from millrace.topology import FACTS, Fact
from millrace_gateway.webhooks.domain import matches
from millrace_runtime import names
from millrace_runtime.cloudevent import Event
from millrace_runtime.errors import InvalidArgument

# By producer and fact: OpenAI's type, and the field that names the resource.
_OPENAI: Mapping[tuple[str, str], tuple[str, str]] = {
    ("tuner", "job.succeeded"): ("fine_tuning.job.succeeded", "job"),
    ("tuner", "job.failed"): ("fine_tuning.job.failed", "job"),
    ("tuner", "job.cancelled"): ("fine_tuning.job.cancelled", "job"),
    ("gateway", "batch.completed"): ("batch.completed", "batch"),
    ("gateway", "batch.failed"): ("batch.failed", "batch"),
    ("gateway", "batch.cancelled"): ("batch.cancelled", "batch"),
    ("gateway", "batch.expired"): ("batch.expired", "batch"),
}


def type_of(fact: Fact) -> str:
    """The type of the events that tell this kind of fact."""
    openai = _OPENAI.get((fact.producer, fact.fact))
    return fact.type if openai is None else openai[0]


_FACT_OF = {type_of(fact): fact for fact in FACTS}
TYPES: Sequence[str] = tuple(_FACT_OF)


def event_id(fact_id: str) -> str:
    """The id of the event that tells a fact: the same for every endpoint."""
    return f"evt_{fact_id.rpartition('-')[2]}"


def document(event: Event) -> str:
    """The body to be posted: the event in JSON."""
    data = _data(event.fact, event.message)
    return _document(event_id(event.id), type_of(event.fact), event.time, data)


def sample(kind: str, now: datetime) -> str:
    """An event of this type that tells nothing that happened.

    Raises:
        InvalidArgument: there is no such type.
    """
    fact = _FACT_OF.get(kind)
    if fact is None:
        raise InvalidArgument(
            f"there is no event {kind!r}; there are {', '.join(TYPES)}", field="event_type"
        )
    identifier = event_id(names.new_id("sample"))
    if (fact.producer, fact.fact) in _OPENAI:
        return _document(identifier, kind, now, {"id": names.new_id("sample")})
    data = json_format.MessageToDict(
        fact.message(),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return _document(identifier, kind, now, data)


def check_patterns(patterns: Sequence[str]) -> None:
    """
    Raises:
        InvalidArgument: one of them means no type that there is.
    """
    for index, pattern in enumerate(patterns):
        if not any(matches(pattern, kind) for kind in TYPES):
            raise InvalidArgument(
                f"no event is {pattern!r}; there are {', '.join(TYPES)},"
                " and patterns such as 'fine_tuning.job.*' and '*'",
                reason="UNKNOWN_EVENT_TYPE",
                field=f"event_types[{index}]",
            )


def _data(fact: Fact, message: Message) -> dict[str, Any]:
    openai = _OPENAI.get((fact.producer, fact.fact))
    if openai is not None:
        return {"id": names.last_id(getattr(message, openai[1]))}
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _document(identifier: str, kind: str, time: datetime, data: Mapping[str, Any]) -> str:
    found = {
        "id": identifier,
        "object": "event",
        "created_at": int(time.timestamp()),
        "type": kind,
        "data": data,
    }
    return json.dumps(found, separators=(",", ":"))
