"""``/v1/events``: the history of a tenant's facts, as server-sent events.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import Header, Query
from fastapi.responses import StreamingResponse

from millrace.topology import FACTS, STAGES
from millrace_gateway.history import Record, Selection, position
from millrace_gateway.rest import errors
from millrace_gateway.rest.caller import CallerOf
from millrace_gateway.rest.routing import router
from millrace_runtime.errors import InvalidArgument, MillraceError

ROUTER = router("events", "/v1/events")

_HEARTBEAT = b": heartbeat\n\n"
_END = object()
_FACT_NAMES = frozenset(fact.fact for fact in FACTS)


@ROUTER.get(
    "",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream_events(
    caller: CallerOf,
    stage: Annotated[
        list[str] | None, Query(description=f"Only of these stages: {', '.join(STAGES)}.")
    ] = None,
    fact: Annotated[
        list[str] | None, Query(description="Only these facts, such as checkpoint.finished.")
    ] = None,
    follow: Annotated[bool, Query(description="Go on with new facts as they come.")] = True,
    after: Annotated[
        str | None, Query(max_length=100, description="As Last-Event-ID, for those who cannot.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(max_length=100, description="Go on after this event.")
    ] = None,
) -> StreamingResponse:
    """Every fact of your tenant from the beginning of history, each a CloudEvent.

    An event's ``id`` is its fact's, its ``event`` is ``<stage>.<fact>``, and its ``data`` is the
    CloudEvent in JSON.
    """
    selection = Selection(
        caller.tenant,
        _known("stage", stage, frozenset(STAGES)),
        _known("fact", fact, _FACT_NAMES),
    )
    known = last_event_id or after
    records = caller.gateway.history.read(selection, position(known) if known else None, follow)
    return StreamingResponse(
        _told(_until(records, caller.gateway.draining)),
        headers={"cache-control": "no-cache"},
        media_type="text/event-stream",
    )


async def _told(records: AsyncIterator[Record | None]) -> AsyncIterator[bytes]:
    try:
        async for record in records:
            yield _HEARTBEAT if record is None else _event(record)
    except MillraceError as error:
        yield b"event: error\ndata: " + orjson.dumps(errors.document(error)) + b"\n\n"


async def _until(
    records: AsyncIterator[Record | None], stop: asyncio.Event
) -> AsyncIterator[Record | None]:
    """``records``, ended when ``stop`` is set."""
    stopping = asyncio.ensure_future(stop.wait())
    coming = asyncio.ensure_future(anext(records, _END))
    try:
        while True:
            await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done() or coming.result() is _END:
                return
            yield coming.result()  # type: ignore[misc]  # _END was looked for
            coming = asyncio.ensure_future(anext(records, _END))
    finally:
        stopping.cancel()
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _event(record: Record) -> bytes:
    return f"id: {record.id}\nevent: {record.kind}\ndata: {record.document}\n\n".encode()


def _known(field: str, given: list[str] | None, allowed: frozenset[str]) -> frozenset[str]:
    """What was given, each alone or separated by commas."""
    words = {word for text in given or () for word in text.split(",")}
    unknown = sorted(words - allowed)
    if unknown:
        raise InvalidArgument(
            f"there is no {field} {unknown[0]!r}; there are {', '.join(sorted(allowed))}",
            field=field,
        )
    return frozenset(words)
