"""Webhooks: endpoints, deliveries, and what follows from an attempt.

    PENDING ──► DELIVERED        answered with a 2xx
       │  ▲         │
       │  └─────────┴─── redelivered by hand
       ▼            ▲
     FAILED ────────┘            no attempt is left, or the endpoint was disabled

A delivery is one fact for one endpoint. All of its attempts carry the same id and the same bytes,
so that a receiver can tell what it has had. Reference: https://www.standardwebhooks.com
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

SECRET_GRACE = timedelta(hours=24)
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0
_GONE = 410


class Status(StrEnum):
    """A delivery's state."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Subscribed:
    """A type of event, or a pattern of types, and since when its events are wanted."""

    pattern: str
    since: datetime


@dataclass(frozen=True)
class Secret:
    """What a signing secret is made from (``signing.py``).

    Attributes:
        salt: random; with the gateways' key it makes the secret.
        key: fingerprint of that key.
        expire_time: when it signs no more; None for the newest.
    """

    salt: str
    key: str
    expire_time: datetime | None = None


@dataclass(frozen=True)
class Wish:
    """What an endpoint is asked to be."""

    name: str
    url: str
    patterns: Sequence[str]
    is_enabled: bool = True


@dataclass(frozen=True)
class Change:
    """What is to be changed of an endpoint; None stays as it is."""

    name: str | None = None
    url: str | None = None
    patterns: Sequence[str] | None = None
    is_enabled: bool | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where a tenant wants events to be posted.

    Attributes:
        secrets: the newest first; those that have not expired sign.
        disable_reason: why nothing is posted; None while it is enabled.
        update_time: of the last change of what it is, or of its secret.
    """

    id: str
    tenant: str
    name: str
    url: str
    subscribed: Sequence[Subscribed]
    secrets: Sequence[Secret]
    create_time: datetime
    update_time: datetime
    disable_reason: str | None = None
    disable_time: datetime | None = None

    @property
    def is_enabled(self) -> bool:
        return self.disable_reason is None

    def wants(self, kind: str, time: datetime) -> bool:
        """Whether an event of this type, true since ``time``, is for this endpoint."""
        return self.is_enabled and any(
            matches(one.pattern, kind) and one.since <= time for one in self.subscribed
        )

    def live_secrets(self, now: datetime) -> Sequence[Secret]:
        return [one for one in self.secrets if one.expire_time is None or one.expire_time > now]


@dataclass(frozen=True)
class Attempt:
    """One request that was made, or could not be.

    Attributes:
        number: counts from 1, over redeliveries too.
        status_code: the answer's; None when there was none.
        error: why there was none.
        response_body: how the answer's body begins.
    """

    number: int
    time: datetime
    duration_seconds: float
    status_code: int | None
    error: str | None
    response_body: str


@dataclass(frozen=True)
class Delivery:
    """An event on its way to an endpoint.

    Attributes:
        id: also the ``webhook-id`` of every attempt.
        tries: attempts since the fact came, or since it was last redelivered by hand.
        attempt_count: attempts ever.
        round_time: when the first of ``tries`` was due.
        next_attempt_time: None when it has ended.
        traceparent: the trace of the fact.
    """

    id: str
    endpoint_id: str
    event_id: str
    kind: str
    status: Status
    tries: int
    attempt_count: int
    create_time: datetime
    round_time: datetime
    next_attempt_time: datetime | None
    traceparent: str
    attempts: Sequence[Attempt] = ()


@dataclass(frozen=True)
class Answer:
    """What came of one request; ``retry_after_seconds`` is what the receiver asked for."""

    duration_seconds: float
    status_code: int | None = None
    error: str | None = None
    body: str = ""
    retry_after_seconds: float | None = None

    @property
    def is_success(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants nothing any more, for good (RFC 9110, section 15.5.11)."""
        return self.status_code == _GONE

    def said(self) -> str:
        """In a few words, for people."""
        return self.error or f"it answered {self.status_code}"


@dataclass(frozen=True)
class Verdict:
    """What is to happen after an attempt; ``retry_seconds`` is given while it is PENDING."""

    status: Status
    retry_seconds: float | None = None


def matches(pattern: str, kind: str) -> bool:
    """Whether a type is meant: ``batch.completed`` by itself, by ``batch.*`` and by ``*``."""
    return pattern in ("*", kind) or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))


def judge(answer: Answer, tries: int, delays_seconds: Sequence[float], jitter: float) -> Verdict:
    """What follows from the answer to the attempt number ``tries``, counted from 1.

    Args:
        delays_seconds: how long to wait after each attempt but the last.
        jitter: what a delay is multiplied with, so that not all come back at once; a
            receiver's own ``Retry-After`` is never cut short.
    """
    if answer.is_success:
        return Verdict(Status.DELIVERED)
    if answer.is_gone or tries > len(delays_seconds):
        return Verdict(Status.FAILED)
    asked = min(answer.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
    return Verdict(Status.PENDING, max(delays_seconds[tries - 1] * jitter, asked))
