"""Facts as CloudEvents 1.0 in structured JSON (CloudEvents JSON format, section 3)."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.message import Message

from millrace.topology import Fact, fact_of

CONTENT_TYPE = "application/cloudevents+json"


class MalformedEvent(Exception):
    """Bytes on a subject are not a fact that this mesh knows."""


@dataclass(frozen=True)
class Event:
    """One fact that happened.

    Attributes:
        id: unique for ever; equal ids are the same fact, delivered again.
        fact: its place in the topology.
        tenant: whose it is.
        message: its data.
        time: when it became true, UTC.
        traceparent: W3C trace context of what caused it; may be empty.
    """

    id: str
    fact: Fact
    tenant: str
    message: Message
    time: datetime
    traceparent: str = ""

    @property
    def subject(self) -> str:
        return self.fact.subject(self.tenant)


def to_json(event: Event) -> str:
    """Structured-mode JSON. ``tenant`` and ``traceparent`` are extension attributes."""
    document = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/millrace/{event.fact.producer}",
        "type": event.fact.type,
        "subject": event.subject,
        "time": event.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "tenant": event.tenant,
        "data": json_format.MessageToDict(event.message, preserving_proto_field_name=True),
    }
    if event.traceparent:
        document["traceparent"] = event.traceparent
    return json.dumps(document, separators=(",", ":"))


def from_json(content: bytes | str) -> Event:
    """Read what ``to_json`` wrote. Fields that a newer producer added are passed over.

    Raises:
        MalformedEvent: saying what is wrong.
    """
    try:
        document = json.loads(content)
        fact = fact_of(_text(document["type"]))
        message = fact.message()
        json_format.ParseDict(document["data"], message, ignore_unknown_fields=True)
        return Event(
            id=_text(document["id"]),
            fact=fact,
            tenant=_text(document["tenant"]),
            message=message,
            time=_moment(document["time"]),
            traceparent=_text(document.get("traceparent", "")),
        )
    except (ValueError, KeyError, TypeError, RecursionError, json_format.ParseError) as error:
        raise MalformedEvent(f"{type(error).__name__}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def _moment(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"the time {value} has no zone")
    return moment
