"""A search for settings as it goes on: server-sent events, ended by ``data: [DONE]``.

What is told is read from the registry again and again: a registry that is away is waited for, and
the search goes on whoever listens.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import serving_tunings_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest import errors
from millrace_gateway.rest.serving_tuning_shapes import (
    result_object,
    traffic_object,
    trial_object,
    tuning_object,
)
from millrace_runtime.errors import Aborted, FailedPrecondition, MillraceError, Unavailable

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": heartbeat\n\n"
_DONE = b"data: [DONE]\n\n"


class Teller:
    """What of a search has been told."""

    def __init__(self, last_trial: int = -1) -> None:
        """``last_trial``: the number of the last trial that is known already."""
        self._last_trial = last_trial
        self._progress = b""
        self._has_begun = False

    def news(self, tuning: pb.ServingTuning) -> list[bytes]:
        """The events that a search has brought since they were asked for last."""
        pieces = []
        if not self._has_begun:
            self._has_begun = True
            shown = tuning_object(tuning).model_dump()
            pieces = [_event("serving_tuning", {**shown, "trials": []})]
            pieces.append(_event("traffic", traffic_object(tuning).model_dump()))
        for trial in tuning.trials:
            if trial.number > self._last_trial:
                self._last_trial = trial.number
                shown = trial_object(trial).model_dump()
                pieces.append(b"id: %d\n" % trial.number + _event("trial", shown))
        return pieces + (_ending(tuning) or self._phase(tuning))

    def _phase(self, tuning: pb.ServingTuning) -> list[bytes]:
        known, now = self._progress, tuning.progress
        document = {"phase": now.phase, "completed": now.completed, "total": now.total}
        self._progress = _event("phase", {**document, "metrics": dict(now.metrics)})
        return [] if self._progress == known else [self._progress]


async def tell(
    registry: Any,
    name: str,
    tuning: pb.ServingTuning,
    teller: Teller,
    draining: asyncio.Event,
    *,
    poll_seconds: float = POLL_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[bytes]:
    """The stream from ``tuning`` on, until the search or this gateway ends.

    Args:
        registry: a stub of the registry's searches.
    """
    told_seconds = clock()
    while True:
        pieces = teller.news(tuning)
        if not pieces and clock() - told_seconds >= heartbeat_seconds:
            pieces = [_HEARTBEAT]
        for piece in pieces:
            told_seconds = clock()
            yield piece
        if _ending(tuning):
            return
        if await _is_set_within(draining, poll_seconds):
            yield _error(
                Unavailable(
                    "the gateway restarts; the search goes on: ask for its events again",
                    reason="RESTARTING",
                )
            )
            return
        try:
            response = await upstream.call(
                registry.GetServingTuning, pb.GetServingTuningRequest(name=name)
            )
            tuning = response.serving_tuning
        except Unavailable:
            continue
        except MillraceError as error:
            yield _error(error)
            return


def _ending(tuning: pb.ServingTuning) -> list[bytes]:
    """How a search has ended; empty: it goes on."""
    message, reason = tuning.failure.message, tuning.failure.reason
    if tuning.state == lifecycle_pb2.WORK_STATE_SUCCEEDED:
        return [_event("result", result_object(tuning.result).model_dump()), _DONE]
    if tuning.state == lifecycle_pb2.WORK_STATE_CANCELLED:
        return [_error(Aborted(message, reason=reason))]
    if tuning.state == lifecycle_pb2.WORK_STATE_FAILED:
        return [_error(FailedPrecondition(message, reason=reason))]
    return []


async def _is_set_within(event: asyncio.Event, wait_seconds: float) -> bool:
    try:
        async with asyncio.timeout(wait_seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _error(error: MillraceError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(errors.document(error)) + b"\n\n"


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(document))
