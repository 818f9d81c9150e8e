"""What happens to a fine-tuning job, as it happens, over whatever happens to the gateway."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from millrace_client.api import Json, Millrace
from millrace_client.errors import NoGateway, NotStreamed, RateLimited, ServerError

JOB = "fine_tuning.job"
EVENT = "fine_tuning.job.event"
ENDED = ("succeeded", "failed", "cancelled", "paused")
_RETRY_SECONDS = 1.0
_NEWEST = 20


@dataclass(frozen=True)
class Away:
    """The gateway does not answer, and is asked again; the job goes on without it."""

    reason: str


Update: TypeAlias = Json | Away
"""A job (``object`` is ``JOB``), an event of it (``EVENT``), or that nobody answers."""


def follow(
    client: Millrace, job: str, *, wait: Callable[[float], None] = time.sleep
) -> Iterator[Update]:
    """Every event of a job once, oldest first, and the job whenever it changed; to its end.

    The last update is the job, ended or paused. A gateway that cannot stream is polled.

    Raises:
        ApiError: there is no such job, or it may not be read.
    """
    feed = _Feed(client, job)
    while True:
        try:
            for update in feed.once():
                yield update
                if update["object"] == JOB and update["status"] in ENDED:
                    return
        except (NoGateway, ServerError, RateLimited) as error:
            yield Away(str(error))
        wait(_RETRY_SECONDS)


class _Feed:
    def __init__(self, client: Millrace, job: str) -> None:
        self._client = client
        self._job = job
        self._last_event_id = ""
        self._last_job: Json = {}
        self._is_streamed = True

    def once(self) -> Iterator[Json]:
        """What is new, until the stream breaks off; or, of a gateway without, for the moment."""
        try:
            for update in self._streamed() if self._is_streamed else self._polled():
                if update["object"] == EVENT:
                    self._last_event_id = update["id"]
                yield update
        except NotStreamed:
            self._is_streamed = False

    def _streamed(self) -> Iterator[Json]:
        return self._client.stream_job(self._job, after=self._last_event_id)

    def _polled(self) -> Iterator[Json]:
        job = self._client.tuning_jobs.get(self._job)  # first: its end's events are there then
        yield from self._new_events()
        if job != self._last_job:
            self._last_job = job
            yield {**job, "object": JOB}

    def _new_events(self) -> list[Json]:
        """Oldest first; the whole history is read only when the newest do not reach back."""
        for limit in (_NEWEST, None):
            events = self._client.tuning_jobs.children(self._job, "events", limit)
            ids = [event["id"] for event in events]
            if self._last_event_id in ids:
                events = events[: ids.index(self._last_event_id)]
                break
            if len(events) < _NEWEST:
                break
        return [{**event, "object": EVENT} for event in reversed(events)]
