"""How each version has answered this gateway, counted here and told to the registry.

The registry judges canaries by these counts: Triton's own statistics take the error response of
a decoupled model for a success.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from millrace_gateway.triton import Delta
from millrace_runtime import latency, names


@dataclass
class VersionAnswers:
    """Counts of one version since this gateway started.

    Attributes:
        requests: those that ended, but for clients' mistakes and clients that left.
        failures: of these, how many had no whole answer.
        first_token_seconds: summed over the whole answers.
        first_token_latencies, token_latencies: of the whole answers with tokens, seconds to the
            first one, and on average to each further one, counted by ``millrace_runtime.latency``.
        stops, lengths: whole answers that the model ended itself, and that were cut.
    """

    tenant: str
    model: str
    version: int
    requests: int = 0
    failures: int = 0
    tokens: int = 0
    first_token_seconds: float = 0.0
    first_token_latencies: dict[int, int] = field(default_factory=dict)
    token_latencies: dict[int, int] = field(default_factory=dict)
    stops: int = 0
    lengths: int = 0


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        token_seconds: mean time of each token after the first; None: it is not known.
        finish_reason: "stop", "length", or empty where the engine gives none.
        is_timed: the first token's time is its own, not that of all tokens together.
    """

    tokens: int
    first_token_seconds: float
    token_seconds: float | None = None
    finish_reason: str = ""
    is_timed: bool = True


@dataclass
class ShadowAnswers:
    """How a version's answers to copies of requests differ from those that clients got.

    Attributes:
        compared: of greedy requests, and those with a seed, that both have answered.
        agreement: summed: the part of the longer text with which both answers begin, in [0, 1].
        truncated: of the compared, new answers that were cut where the old ones ended.
        failed: copies without a whole answer, of all.
    """

    tenant: str
    model: str
    old_version: int
    new_version: int
    compared: int = 0
    agreement: float = 0.0
    truncated: int = 0
    failed: int = 0
    old_tokens: int = 0
    new_tokens: int = 0

    def compare(self, old: Delta, new: Delta) -> None:
        """Count two whole answers to the same request."""
        self.compared += 1
        self.agreement += agreement(old.text, new.text)
        self.truncated += new.finish_reason == "length" and old.finish_reason != "length"
        self.old_tokens += old.token_count
        self.new_tokens += new.token_count


def agreement(old: str, new: str) -> float:
    """The part of the longer text with which both begin; two empty texts agree.

    Of texts, not of tokens: engines answer with text, and two versions may have two tokenizers.
    """
    longest = max(len(old), len(new))
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    return sum(1 for _ in equal) / longest if longest else 1.0


class AnswerCounts:
    """The counts of all versions; ``life`` identifies them, since they begin at zero."""

    def __init__(self) -> None:
        self.life = names.new_id("gateway")
        self.changed = asyncio.Event()
        self._counts: dict[tuple[str, str, int], VersionAnswers] = {}
        self._shadows: dict[tuple[str, str, int, int], ShadowAnswers] = {}

    def answered(self, tenant: str, model: str, version: int, answer: Answer) -> None:
        counts = self._of(tenant, model, version)
        counts.requests += 1
        counts.tokens += answer.tokens
        counts.first_token_seconds += answer.first_token_seconds
        counts.stops += answer.finish_reason == "stop"
        counts.lengths += answer.finish_reason == "length"
        if answer.tokens and answer.is_timed:
            _count(counts.first_token_latencies, answer.first_token_seconds)
        if answer.token_seconds is not None:
            _count(counts.token_latencies, answer.token_seconds)

    def failed(self, tenant: str, model: str, version: int) -> None:
        counts = self._of(tenant, model, version)
        counts.requests += 1
        counts.failures += 1

    def shadow(self, tenant: str, model: str, old_version: int, new_version: int) -> ShadowAnswers:
        """The comparison of two versions, to be added to."""
        self.changed.set()
        key = (tenant, model, old_version, new_version)
        return self._shadows.setdefault(key, ShadowAnswers(*key))

    def shadows(self) -> Sequence[ShadowAnswers]:
        return list(self._shadows.values())

    def all(self) -> Sequence[VersionAnswers]:
        return list(self._counts.values())

    def _of(self, tenant: str, model: str, version: int) -> VersionAnswers:
        self.changed.set()
        key = (tenant, model, version)
        return self._counts.setdefault(key, VersionAnswers(*key))


def _count(latencies: dict[int, int], seconds: float) -> None:
    index = latency.index_of(seconds)
    latencies[index] = latencies.get(index, 0) + 1
