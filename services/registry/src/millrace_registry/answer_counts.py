"""How quick and how long a version's answers were: sums that only grow. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace_registry.evidence import Answers, Latencies
from millrace_registry.traffic import Traffic
from millrace_runtime import latency


@dataclass(frozen=True)
class AnswerCounts:
    """Of the whole answers to clients (``service.proto``: VersionAnswers)."""

    tokens: int = 0
    stops: int = 0
    lengths: int = 0
    first_token: Mapping[int, int] = field(default_factory=dict)
    token: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: "AnswerCounts") -> "AnswerCounts":
        return AnswerCounts(
            self.tokens + other.tokens,
            self.stops + other.stops,
            self.lengths + other.lengths,
            latency.added(self.first_token, other.first_token),
            latency.added(self.token, other.token),
        )

    def since(self, earlier: "AnswerCounts") -> "AnswerCounts":
        return AnswerCounts(
            self.tokens - earlier.tokens,
            self.stops - earlier.stops,
            self.lengths - earlier.lengths,
            latency.since(self.first_token, earlier.first_token),
            latency.since(self.token, earlier.token),
        )

    def document(self) -> dict[str, Any]:
        """As JSON reads it back: keys are texts."""
        return {
            "tokens": self.tokens,
            "stops": self.stops,
            "lengths": self.lengths,
            "first_token": _texts(self.first_token),
            "token": _texts(self.token),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "AnswerCounts":
        """From ``document``; nothing in it is nothing counted."""
        return cls(
            document.get("tokens", 0),
            document.get("stops", 0),
            document.get("lengths", 0),
            _numbers(document.get("first_token", {})),
            _numbers(document.get("token", {})),
        )


def answers_of(traffic: Traffic, counts: AnswerCounts) -> Answers:
    """A step's part of both, as it is judged."""
    return Answers(
        requests=traffic.requests,
        failures=traffic.failures,
        first_token=Latencies.of_counts(counts.first_token),
        token=Latencies.of_counts(counts.token),
        tokens=counts.tokens,
        stops=counts.stops,
        lengths=counts.lengths,
    )


def _texts(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(index): count for index, count in sorted(counts.items())}


def _numbers(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(index): count for index, count in counts.items()}
