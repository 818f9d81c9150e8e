"""How each version has answered this gateway, counted here and told to the registry.

The registry judges canaries by these counts: Triton's own statistics take the error response of
a decoupled model for a success.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from millrace_runtime import names


@dataclass
class VersionAnswers:
    """Counts of one version since this gateway started.

    Attributes:
        requests: those that ended, but for clients' mistakes and clients that left.
        failures: of these, how many had no whole answer.
        first_token_seconds: summed over the whole answers.
    """

    tenant: str
    model: str
    version: int
    requests: int = 0
    failures: int = 0
    tokens: int = 0
    first_token_seconds: float = 0.0


class AnswerCounts:
    """The counts of all versions; ``life`` identifies them, since they begin at zero."""

    def __init__(self) -> None:
        self.life = names.new_id("gateway")
        self.changed = asyncio.Event()
        self._counts: dict[tuple[str, str, int], VersionAnswers] = {}

    def answered(
        self, tenant: str, model: str, version: int, tokens: int, first_token_seconds: float
    ) -> None:
        counts = self._of(tenant, model, version)
        counts.requests += 1
        counts.tokens += tokens
        counts.first_token_seconds += first_token_seconds

    def failed(self, tenant: str, model: str, version: int) -> None:
        counts = self._of(tenant, model, version)
        counts.requests += 1
        counts.failures += 1

    def all(self) -> Sequence[VersionAnswers]:
        return list(self._counts.values())

    def _of(self, tenant: str, model: str, version: int) -> VersionAnswers:
        self.changed.set()
        key = (tenant, model, version)
        return self._counts.setdefault(key, VersionAnswers(*key))
