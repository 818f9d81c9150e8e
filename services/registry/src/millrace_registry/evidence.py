"""What is known of a new version beside the old one, since a rollout's present step began.

Gateways report what they saw (``ReportAnswers``), the controller adds what it asked and scored.
Counts only ever grow, so that a report that is lost or comes twice changes nothing; a step's
part is the difference to what there was when it began.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from millrace_runtime import latency

LATENCY_BOUNDS = latency.BOUNDS
_EMPTY = (0,) * (len(LATENCY_BOUNDS) + 1)


@dataclass(frozen=True)
class Latencies:
    """How many latencies were at most each of ``LATENCY_BOUNDS`` and more than the one before;
    the last count is of those beyond all."""

    counts: tuple[int, ...] = _EMPTY

    @property
    def total(self) -> int:
        return sum(self.counts)

    def since(self, earlier: "Latencies") -> "Latencies":
        return Latencies(tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latencies":
        counts = list(_EMPTY)
        for value in seconds:
            counts[latency.index_of(value)] += 1
        return cls(tuple(counts))

    @classmethod
    def of_counts(cls, sparse: Mapping[int, int]) -> "Latencies":
        """From counts by their bounds' index."""
        counts = list(_EMPTY)
        for index, count in sparse.items():
            counts[min(index, len(LATENCY_BOUNDS))] += count
        return cls(tuple(counts))


@dataclass(frozen=True)
class Answers:
    """Of one version: requests that have ended, those that failed, and how quick the others were.

    ``first_token``: seconds to the first token; ``token``: mean seconds of each further one.
    ``stops`` of clients' whole answers the model ended itself, ``lengths`` were cut at their
    largest length; all had ``tokens``. Of the controller's own questions only ``requests`` and
    ``failures`` are counted.
    """

    requests: int = 0
    failures: int = 0
    first_token: Latencies = field(default_factory=Latencies)
    token: Latencies = field(default_factory=Latencies)
    tokens: int = 0
    stops: int = 0
    lengths: int = 0


@dataclass(frozen=True)
class Pair:
    """The same prompt, scored by both versions: a figure of quality, larger is better.

    ``prompt`` names it (``golden/12``, ``shadow/…``). A score that is not finite stands for an
    answer that could not be scored: NaN, nothing, or not one token.
    """

    prompt: str
    old: float
    new: float

    @property
    def difference(self) -> float:
        """New less old; minus infinity when only the new one could not be scored."""
        if math.isfinite(self.new):
            return self.new - self.old if math.isfinite(self.old) else 0.0
        return -math.inf if math.isfinite(self.old) else 0.0


@dataclass(frozen=True)
class Evidence:
    """All that a step of a rollout is judged by.

    ``pairs_expected``: how many pairs there will be, once both versions have scored all prompts;
    0: the artifact has no prompts. None: they have not been read yet. ``asked_new`` and
    ``asked_old``: of the prompts' questions, tries again among them, how many ended and failed.
    """

    new: Answers = Answers()
    old: Answers = Answers()
    pairs: tuple[Pair, ...] = ()
    pairs_expected: int | None = 0
    asked_new: Answers = Answers()
    asked_old: Answers = Answers()
