"""How much a key may use: token buckets on a monotonic clock, in this process alone.

Each of several gateways lets through its part of a key's limits, rounded up (``replicas.py``).
Nothing here waits, locks or asks the database. Headers and errors are those of
https://platform.openai.com/docs/guides/rate-limits.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from millrace_gateway.domain import KeyLimits, Principal
from millrace_runtime.errors import ResourceExhausted

_SECONDS_PER_MINUTE = 60.0
_MOST_REMEMBERED = 10_000
# What a bucket may lack and still be enough: the error of adding up floats.
_SLACK = 1e-6
# Until a generation in progress ends nobody knows how long it takes.
_CONCURRENCY_RETRY_SECONDS = 1.0


# As OpenAI counts, too, where the tokenizer has not counted yet.
_CHARACTERS_PER_TOKEN = 4
# Reserved for an answer whose length the client left open.
_ASSUMED_ANSWER_TOKENS = 512


class RateLimited(ResourceExhausted):
    """A key's limit is reached.

    Attributes:
        kind: OpenAI's error type: "requests" or "tokens".
        retry_after_seconds: when enough is free again; None: never, the request is too large.
    """

    def __init__(self, message: str, kind: str, retry_after_seconds: float | None) -> None:
        super().__init__(message, reason="RATE_LIMIT_EXCEEDED")
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds

    def headers(self) -> dict[str, str]:
        """When to try again, for every HTTP client and, finer, for OpenAI's.

        ``x-should-retry`` is what OpenAI's clients go by before anything else.
        """
        if self.retry_after_seconds is None:
            return {"x-should-retry": "false"}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after_seconds))),
            "retry-after-ms": str(max(1, math.ceil(self.retry_after_seconds * 1000))),
        }


class Bucket:
    """Fills evenly up to a minute's worth; what is taken is gone until it has filled again.

    It is below zero when more was used than had been reserved: that is paid for first.

    Args:
        largest: the most that can ever be taken at once, where this is a part of what holds in
            all: from ``per_minute`` on it is there when the bucket is full, and paid for after.
    """

    def __init__(self, per_minute: int, now_seconds: float, largest: int = 0) -> None:
        self.per_minute = per_minute
        self.largest = largest or per_minute
        self._level = float(per_minute)
        self._filled_seconds = now_seconds

    def level(self, now_seconds: float) -> float:
        """What can be taken now, at most ``per_minute``."""
        gained = (now_seconds - self._filled_seconds) * self.per_minute / _SECONDS_PER_MINUTE
        self._level = min(self._level + gained, float(self.per_minute))
        self._filled_seconds = now_seconds
        return self._level

    def wait_seconds(self, amount: float, now_seconds: float) -> float:
        """How long until ``amount`` is there; 0 when it is, infinite when it never will be."""
        if amount > self.largest:
            return math.inf
        missing = min(amount, self.per_minute) - self.level(now_seconds)
        if missing <= _SLACK:
            return 0.0
        return missing * _SECONDS_PER_MINUTE / self.per_minute

    def take(self, amount: float, now_seconds: float) -> None:
        """Take what is there, or more."""
        self._level = self.level(now_seconds) - amount

    def give_back(self, amount: float, now_seconds: float) -> None:
        """Undo part of a taking; a negative amount takes more."""
        self._level = min(self.level(now_seconds) + amount, float(self.per_minute))

    def resized(self, per_minute: int, now_seconds: float, largest: int = 0) -> "Bucket":
        """A bucket of another size from which as much is missing."""
        missing = self.per_minute - self.level(now_seconds)
        other = Bucket(per_minute, now_seconds, largest)
        other.take(missing, now_seconds)
        return other

    def remaining(self, now_seconds: float) -> int:
        return max(0, math.floor(self.level(now_seconds) + _SLACK))

    def reset_seconds(self, now_seconds: float) -> float:
        """How long until it is full."""
        missing = self.per_minute - self.level(now_seconds)
        return missing * _SECONDS_PER_MINUTE / self.per_minute


class Allowance:
    """What one key has left, at this one of ``gateways``."""

    def __init__(
        self, key_id: str, limits: KeyLimits, monotonic_seconds: Callable[[], float]
    ) -> None:
        self._key_id = key_id
        self._now = monotonic_seconds
        self.limits = KeyLimits()
        self.gateways = 1
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._running = 0
        self.change(limits)

    def change(self, limits: KeyLimits, gateways: int = 1) -> None:
        """Hold the key to a part of other limits; what it has used counts on."""
        now = self._now()
        self._requests = _changed(self._requests, limits.requests_per_minute, gateways, now)
        self._tokens = _changed(self._tokens, limits.tokens_per_minute, gateways, now)
        self.limits, self.gateways = limits, gateways

    def reserve(self, tokens: int, requests: int = 1) -> "Reservation":
        """Take requests, estimated tokens and a place among the concurrent ones, or nothing.

        Raises:
            RateLimited: one of the three is used up.
        """
        now = self._now()
        self._check_concurrency()
        if requests:
            self._check(self._requests, "requests", requests, now)
        self._check(self._tokens, "tokens", tokens, now)
        if self._requests is not None:
            self._requests.take(requests, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        self._running += 1
        return Reservation(self, tokens)

    def settle(self, reserved_tokens: int, used_tokens: int) -> None:
        """A generation has ended; called by its reservation, once."""
        self._running -= 1
        if self._tokens is not None:
            self._tokens.give_back(reserved_tokens - used_tokens, self._now())

    def headers(self) -> dict[str, str]:
        """The limits as OpenAI's headers; those that the key has not are left out."""
        now = self._now()
        headers = {}
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{kind}"] = str(bucket.remaining(now))
                headers[f"x-ratelimit-reset-{kind}"] = duration(bucket.reset_seconds(now))
        return headers

    @property
    def tokens_per_minute(self) -> int | None:
        """This gateway's part of them; None when they are not limited."""
        return None if self._tokens is None else self._tokens.per_minute

    @property
    def running(self) -> int:
        return self._running

    def is_untouched(self) -> bool:
        """Whether forgetting it and beginning anew would make no difference."""
        now = self._now()
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]
        return not self._running and all(not bucket.reset_seconds(now) for bucket in buckets)

    def _check_concurrency(self) -> None:
        limit = self.limits.concurrent_generations
        if limit is not None and self._running >= -(-limit // self.gateways):
            raise RateLimited(
                f"Rate limit reached for key {self._key_id} on concurrent generations: "
                f"Limit {limit}{self._shared()}, In progress {self._running}. "
                "Try again when one has ended.",
                "requests",
                _CONCURRENCY_RETRY_SECONDS,
            )

    def _check(self, bucket: Bucket | None, kind: str, amount: int, now: float) -> None:
        if bucket is None:
            return
        seconds = bucket.wait_seconds(amount, now)
        if not seconds:
            return
        limit = f"for key {self._key_id} on {kind} per minute: Limit {bucket.largest}"
        if math.isinf(seconds):
            raise RateLimited(f"Request too large {limit}, Requested {amount}.", kind, None)
        raise RateLimited(
            f"Rate limit reached {limit}{self._shared()}, Remaining {bucket.remaining(now)}, "
            f"Requested {amount}. Please try again in {duration(seconds)}.",
            kind,
            seconds,
        )

    def _shared(self) -> str:
        return f" in all at {self.gateways} gateways" if self.gateways > 1 else ""


class Reservation:
    """One generation's share of its key's limits, until it is settled."""

    def __init__(self, allowance: Allowance, tokens: int) -> None:
        self._allowance = allowance
        self.tokens = tokens
        self._is_settled = False

    def settle(self, used_tokens: int) -> None:
        """The generation has ended and took ``used_tokens``. Twice is as once."""
        if not self._is_settled:
            self._is_settled = True
            self._allowance.settle(self.tokens, used_tokens)


class Limiter:
    """The allowances of the keys that have limits; of others it remembers nothing."""

    def __init__(
        self,
        default: KeyLimits = KeyLimits(),
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default
        self._has_default = _has_any(default)
        self._now = monotonic_seconds
        self._gateways = 1
        self._allowances: dict[str, Allowance] = {}
        self._forget_at = _MOST_REMEMBERED

    def share(self, gateways: int) -> None:
        """Let through a part of each key's limits; what keys have used counts on."""
        self._gateways = gateways

    def of(self, principal: Principal | None) -> Allowance | None:
        """What the caller's key has left; None when it has no limits."""
        if principal is None or not (self._has_default or _has_any(principal.limits)):
            return None
        limits = self._completed(principal.limits) if self._has_default else principal.limits
        allowance = self._allowances.get(principal.key_id)
        if allowance is None:
            self._forget_untouched()
            allowance = Allowance(principal.key_id, limits, self._now)
            self._allowances[principal.key_id] = allowance
        if allowance.limits != limits or allowance.gateways != self._gateways:
            allowance.change(limits, self._gateways)
        return allowance

    def _completed(self, limits: KeyLimits) -> KeyLimits:
        default = self._default
        return replace(
            limits,
            requests_per_minute=limits.requests_per_minute or default.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute or default.tokens_per_minute,
            concurrent_generations=(
                limits.concurrent_generations or default.concurrent_generations
            ),
        )

    def _forget_untouched(self) -> None:
        if len(self._allowances) >= self._forget_at:
            self._allowances = {
                key_id: allowance
                for key_id, allowance in self._allowances.items()
                if not allowance.is_untouched()
            }
            self._forget_at = max(_MOST_REMEMBERED, 2 * len(self._allowances))


def prompt_tokens(prompt: str | Sequence[int]) -> int:
    """How many tokens a prompt may be, before its tokenizer has counted; of ids, how many."""
    if isinstance(prompt, str):
        return -(-len(prompt) // _CHARACTERS_PER_TOKEN)
    return len(prompt)


def estimated_tokens(prompt: str | Sequence[int], asked: object, limit: int) -> int:
    """What to reserve: the prompt, and the longest answer that was asked for.

    Where the client left that open (``asked`` is no int) a usual answer is assumed, and no more
    than fits the limit.
    """
    tokens = prompt_tokens(prompt)
    if isinstance(asked, int):
        return tokens + asked
    return max(tokens, min(tokens + _ASSUMED_ANSWER_TOKENS, limit))


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: "120ms", "7.66s", "6m0s"; rounded up."""
    milliseconds = math.ceil(seconds * 1000 - _SLACK)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _has_any(limits: KeyLimits) -> bool:
    return (
        limits.requests_per_minute is not None
        or limits.tokens_per_minute is not None
        or limits.concurrent_generations is not None
    )


def _changed(
    bucket: Bucket | None, per_minute: int | None, gateways: int, now: float
) -> Bucket | None:
    if per_minute is None:
        return None
    part = -(-per_minute // gateways)
    if bucket is None:
        return Bucket(part, now, per_minute)
    if (bucket.per_minute, bucket.largest) == (part, per_minute):
        return bucket
    return bucket.resized(part, now, per_minute)
