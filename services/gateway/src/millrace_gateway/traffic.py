"""What requests to each model are like: how long, how often. Never what they say.

Kept in this gateway's memory: of each model the last whole answers, of as many models as were
asked last.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_KEPT = 1024
_MODELS = 256
_FEWEST = 20


@dataclass(frozen=True)
class Seen:
    """One answered request; ``moment`` is of a monotonic clock, in seconds."""

    moment: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Summary:
    """``requests``: newest last. Rate and shape are those of all of them."""

    requests: Sequence[Seen]

    @property
    def is_enough(self) -> bool:
        """There are so many that they say something about those to come."""
        return len(self.requests) >= _FEWEST

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return self.requests[-1].moment - self.requests[0].moment if self.requests else 0.0

    @property
    def requests_per_second(self) -> float:
        """0: fewer than two moments are known."""
        return (len(self.requests) - 1) / self.seconds if self.seconds > 0 else 0.0


class RecentTraffic:
    """Of every model, by tenant and id."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: OrderedDict[tuple[str, str], deque[Seen]] = OrderedDict()

    def add(self, tenant: str, model: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Remember a request that was answered; one without tokens says nothing."""
        if prompt_tokens <= 0 or answer_tokens <= 0:
            return
        kept = self._seen.setdefault((tenant, model), deque(maxlen=_KEPT))
        kept.append(Seen(self._now(), prompt_tokens, answer_tokens))
        self._seen.move_to_end((tenant, model))
        if len(self._seen) > _MODELS:
            self._seen.popitem(last=False)

    def of(self, tenant: str, model: str) -> Summary:
        return Summary(list(self._seen.get((tenant, model), ())))
