"""``/v1/fine_tuning/jobs/{id}/events``: what happened to a job, as a list or as it comes.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, ended by ``data: [DONE]``
as all streams of the OpenAI API are, so that the ``openai`` package's ``Stream`` reads it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from fastapi import Header, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.tuner.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest import errors, fine_tuning
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import seconds
from millrace_runtime.errors import InvalidArgument, MillraceError, Unavailable

ROUTER = router("fine-tuning", "/v1/fine_tuning/jobs")

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": heartbeat\n\n"
_DONE = b"data: [DONE]\n\n"
# Most looks find a handful of new events; the rest of a long history is read in large pages.
_FIRST_PAGE, _PAGE = 20, 500
_ENDED = frozenset(
    (
        lifecycle_pb2.WORK_STATE_SUCCEEDED,
        lifecycle_pb2.WORK_STATE_FAILED,
        lifecycle_pb2.WORK_STATE_CANCELLED,
    )
)


class JobEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, float] | None


@dataclass(frozen=True)
class News:
    """A job as it is, and its events since the last look, oldest first."""

    job: pb.Job
    events: Sequence[pb.JobEvent]

    @property
    def is_last(self) -> bool:
        return self.job.state in _ENDED


class JobReader:
    """Reads one job and, each once, its events."""

    def __init__(self, tuner: Any, name: str, last_event_id: str = "") -> None:
        """``tuner`` is a stub of the tuner; events up to ``last_event_id`` are known already."""
        self._tuner = tuner
        self._name = name
        self._last_event_id = last_event_id

    async def read(self) -> News:
        """What is new.

        The job is read before its events: those of its end are there when it has ended.

        Raises:
            InvalidArgument: the job has no event ``last_event_id``.
            MillraceError: whatever the tuner says.
        """
        request = pb.GetJobRequest(name=self._name)
        job = (await upstream.call(self._tuner.GetJob, request)).job
        events = await self._new_events()
        if events:
            self._last_event_id = events[-1].id
        return News(job, events)

    async def _new_events(self) -> list[pb.JobEvent]:
        newest_first: list[pb.JobEvent] = []
        size, token = _FIRST_PAGE, ""
        while True:
            page = await upstream.call(
                self._tuner.ListJobEvents,
                pb.ListJobEventsRequest(parent=self._name, page_size=size, page_token=token),
            )
            for event in page.events:
                if event.id == self._last_event_id:
                    return newest_first[::-1]
                newest_first.append(event)
            if not page.next_page_token:
                break
            size, token = _PAGE, page.next_page_token
        if self._last_event_id:
            raise InvalidArgument(
                f"the job has no event {self._last_event_id!r}", field="last_event_id"
            )
        return newest_first[::-1]


@ROUTER.get(
    "/{job_id}/events",
    response_model=ListObject[JobEvent],
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def read_job_events(
    job_id: str,
    caller: CallerOf,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[
        bool, Query(description="Every event from the first on, as it comes, until the job ends.")
    ] = False,
    progress: Annotated[
        bool, Query(description="With `stream`: also the job, whenever its progress changes.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(max_length=100, description="With `stream`: go on after this event.")
    ] = None,
) -> Any:
    """What happened to the job: newest first as a list, oldest first as a stream.

    A stream's events are named ``fine_tuning.job.event``. Before ``[DONE]`` it tells the job as
    it ended, an event ``fine_tuning.job``. It may break off when a gateway is restarted: ask
    again with ``Last-Event-ID``, as browsers do by themselves.
    """
    name = caller.name("jobs", job_id, "fine-tuning job")
    if not stream:
        return await _page(caller, name, after, limit)
    reader = JobReader(caller.upstream.tuner, name, last_event_id or after or "")
    news = await reader.read()  # what is wrong with the request is an answer, not a stream
    return _streamed(tell(caller, reader, news, with_progress=progress))


async def _page(caller: Caller, name: str, after: str | None, limit: int) -> dict[str, Any]:
    request = pb.ListJobEventsRequest(
        parent=name, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.tuner.ListJobEvents, request)
    items = [_event_object(event) for event in response.events]
    return page_of(items, bool(response.next_page_token))


def _streamed(pieces: AsyncIterator[bytes]) -> Response:
    headers = {"cache-control": "no-cache"}
    return StreamingResponse(pieces, headers=headers, media_type="text/event-stream")


async def tell(
    caller: Caller,
    reader: JobReader,
    news: News,
    *,
    with_progress: bool,
    poll_seconds: float = POLL_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[bytes]:
    """The stream from ``news`` on, until the job or this gateway ends.

    A tuner that is away is waited for, with heartbeats.
    """
    told_seconds, told_job = clock(), b""
    while True:
        pieces = [_event(event) for event in news.events]
        job = _job(caller, news.job)
        if news.is_last:
            pieces += [job, _DONE]
        elif with_progress and job != told_job:
            pieces.append(job)
            told_job = job
        if not pieces and clock() - told_seconds >= heartbeat_seconds:
            pieces.append(_HEARTBEAT)
        for piece in pieces:
            told_seconds = clock()
            yield piece
        if news.is_last or await _is_set_within(caller.gateway.draining, poll_seconds):
            return
        try:
            news = await reader.read()
        except Unavailable:
            news = News(news.job, ())
        except MillraceError as error:
            yield b"event: error\ndata: " + orjson.dumps(errors.document(error)) + b"\n\n"
            return


async def _is_set_within(event: asyncio.Event, wait_seconds: float) -> bool:
    try:
        async with asyncio.timeout(wait_seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _event_object(event: pb.JobEvent) -> JobEvent:
    return JobEvent(
        id=event.id,
        created_at=seconds(event.create_time),
        level=event.level,
        message=event.message,
        type=event.type,
        data=dict(event.metrics) or None,
    )


def _event(event: pb.JobEvent) -> bytes:
    shown = _event_object(event)
    return b"id: " + event.id.encode() + b"\n" + _piece(shown.object, shown)


def _job(caller: Caller, job: pb.Job) -> bytes:
    shown = fine_tuning.job_object(caller, job)
    return _piece(shown.object, shown)


def _piece(kind: str, shown: BaseModel) -> bytes:
    # A NaN loss must not make a document that nobody can read: orjson writes null.
    return f"event: {kind}\ndata: ".encode() + orjson.dumps(shown.model_dump()) + b"\n\n"
