"""Attempts: some at a time, in the gateway's loop."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from opentelemetry.trace import Span, SpanKind, StatusCode
from prometheus_client import Counter, Histogram
from sqlalchemy.exc import SQLAlchemyError

from millrace_gateway.webhooks.domain import Answer, Status, Verdict, judge
from millrace_gateway.webhooks.post import Poster
from millrace_gateway.webhooks.queue import Due
from millrace_gateway.webhooks.signing import KeyMismatch, SigningKey
from millrace_runtime import telemetry
from millrace_runtime.leases import LeaseLost

LOG = logging.getLogger(__name__)

USER_AGENT = "Millrace-Webhooks/1.0"
_POLL_SECONDS = 1.0
_JITTER = (0.9, 1.1)

_ATTEMPTS = Counter(
    "millrace_webhook_attempts_total", "Attempts to deliver a webhook.", ["outcome"]
)
_SECONDS = Histogram("millrace_webhook_attempt_seconds", "Time that an attempt took.")


class Queue(Protocol):
    """Where deliveries come from; ``queue.DeliveryQueue`` is one."""

    def take(self) -> Due | None: ...

    def conclude(self, due: Due, answer: Answer, verdict: Verdict) -> object: ...

    def release(self, due: Due) -> None: ...


class Deliverer:
    """Attempts what is due.

    Args:
        delays_seconds: how long to wait after each attempt of a delivery but the last.
        concurrency: attempts at the same time.
        jitter: what a delay is multiplied with.
    """

    def __init__(
        self,
        queue: Queue,
        poster: Poster,
        key: SigningKey,
        delays_seconds: Sequence[float],
        concurrency: int,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = lambda: random.uniform(*_JITTER),
    ) -> None:
        self._queue = queue
        self._poster = poster
        self._key = key
        self._delays_seconds = delays_seconds
        self._concurrency = concurrency
        self._now = now
        self._jitter = jitter
        self._doorbell = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    def ring(self) -> None:
        """Say, in the loop, that something may be due. Only speeds things up."""
        self._doorbell.set()

    async def run(self, draining: asyncio.Event) -> None:
        """Work until the gateway drains; what is under way then may end, until it is cancelled."""
        ringing = asyncio.create_task(self._ring_when(draining))
        try:
            while not draining.is_set():
                self._doorbell.clear()
                await self._begin_what_is_due()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._doorbell.wait()
            await asyncio.gather(*self._under_way, return_exceptions=True)
        finally:
            for task in (ringing, *self._under_way):
                task.cancel()
            await asyncio.gather(ringing, *self._under_way, return_exceptions=True)

    async def attempt(self, due: Due) -> None:
        """Post a delivery once, and note what came of it."""
        try:
            with telemetry.span(
                f"webhook {due.delivery.kind}",
                traceparent=due.delivery.traceparent,
                kind=SpanKind.CLIENT,
                attributes={
                    "http.request.method": "POST",
                    "millrace.tenant": due.endpoint.tenant,
                    "millrace.webhook.endpoint": due.endpoint.id,
                    "millrace.webhook.delivery": due.delivery.id,
                    "http.request.resend_count": due.delivery.attempt_count,
                },
            ) as span:
                answer = await self._post(due)
                _tell(span, answer)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._queue.release, due)
            raise
        verdict = judge(answer, due.delivery.tries + 1, self._delays_seconds, self._jitter())
        await asyncio.to_thread(self._queue.conclude, due, answer, verdict)
        _SECONDS.observe(answer.duration_seconds)
        _ATTEMPTS.labels(_outcome(verdict)).inc()

    async def _post(self, due: Due) -> Answer:
        body = due.document.encode()
        try:
            signed = self._key.headers(due.endpoint, due.delivery.id, body, self._now())
        except KeyMismatch as error:
            return Answer(0.0, error=str(error))
        headers = {"content-type": "application/json", "user-agent": USER_AGENT, **signed}
        return await self._poster.post(due.endpoint.url, headers, body)

    async def _begin_what_is_due(self) -> None:
        while len(self._under_way) < self._concurrency and (due := await self._take()):
            task = asyncio.create_task(self._attempt_or_log(due))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    async def _ring_when(self, draining: asyncio.Event) -> None:
        await draining.wait()
        self._doorbell.set()

    async def _take(self) -> Due | None:
        taking = asyncio.ensure_future(asyncio.to_thread(self._queue.take))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on: what it takes then, nobody would attempt until its lease is over.
            with suppress(SQLAlchemyError):
                if due := await taking:
                    await asyncio.to_thread(self._queue.release, due)
            raise
        except SQLAlchemyError:
            LOG.exception("what is due cannot be looked up; it is tried again")
            return None

    async def _attempt_or_log(self, due: Due) -> None:
        try:
            await self.attempt(due)
        except LeaseLost as error:
            LOG.info("webhooks: %s", error)
        except Exception:  # the next attempt, when the lease has run out, may go better
            LOG.exception("webhooks: attempting %s failed", due.delivery.id)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._doorbell.set()


def _outcome(verdict: Verdict) -> str:
    return "retried" if verdict.status is Status.PENDING else verdict.status.value


def _tell(span: Span, answer: Answer) -> None:
    if answer.status_code is not None:
        span.set_attribute("http.response.status_code", answer.status_code)
    if not answer.is_success:
        span.set_attribute("error.type", str(answer.status_code or "unreachable"))
        span.set_status(StatusCode.ERROR, answer.said())
