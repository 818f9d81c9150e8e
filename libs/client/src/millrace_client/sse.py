"""Server-sent events, as the HTML standard has them (section 9.2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; ``id`` is the last one that the stream gave."""

    data: str
    event: str = "message"
    id: str = ""


def parse(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """The events in ``lines``, which come without their newlines; comments are passed over."""
    data: list[str] = []
    kind, last_id = "message", ""
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent("\n".join(data), kind, last_id)
            data, kind = [], "message"
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value
