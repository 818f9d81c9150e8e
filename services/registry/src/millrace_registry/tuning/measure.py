"""One look at one set of settings: what is measured, and when it is given up."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from millrace_registry.tuning.load import Load, Run, Target, percentile, tail

_STEPS = 4
_SINGLE_SHARE = 0.5
_FEWEST, _MOST = 8, 512
_NINETY = 0.9
_AT_ONCE = 8


@dataclass(frozen=True)
class Figures:
    """``service.proto``: ServingTrial. None: not measured."""

    single_stream_seconds_p90: float | None = None
    single_stream_first_token_seconds_p90: float | None = None
    offline_tokens_per_second: float | None = None
    offline_requests_per_second: float | None = None
    server_requests_per_second: float | None = None
    server_tokens_per_second: float | None = None
    server_first_token_seconds_p99: float | None = None
    server_token_seconds_p99: float | None = None


@dataclass(frozen=True)
class Look:
    """``pruned``: why it was given up; empty when it was not."""

    figures: Figures
    pruned: str = ""

    @property
    def score(self) -> float:
        """Requests a second within the target."""
        return self.figures.server_requests_per_second or 0.0


class Measurement:
    """All looks of one search: they last as long, and ask as much.

    Args:
        seconds: of each scenario, about.
    """

    def __init__(self, target: Target, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._offline_count = 0  # the first look says how many requests fill the time

    def expect(self, latency_seconds: float) -> None:
        """Have offline runs ask as much as fills their time; the first latency told counts."""
        if not self._offline_count:
            wanted = math.ceil(_AT_ONCE * self._seconds / latency_seconds)
            self._offline_count = min(_MOST, max(_FEWEST, wanted))

    async def look(self, load: Load, beat: float, say: Callable[[str], None]) -> Look:
        """Measure settings that are loaded.

        Args:
            beat: the best score so far; what can no longer reach it is given up. 0: nothing is.
            say: is told what is done.

        Raises:
            AskFailed
        """
        say("single stream")
        await load.single_stream(0)  # warm
        single = await load.single_stream(_SINGLE_SHARE * self._seconds)
        latency = percentile([answer.seconds for answer in single.answers], _NINETY)
        self.expect(latency)
        say("offline")
        offline = await load.offline(self._offline_count)
        measured = {
            "single_stream_seconds_p90": latency,
            "single_stream_first_token_seconds_p90": percentile(
                [answer.first_token_seconds for answer in single.answers], _NINETY
            ),
            "offline_tokens_per_second": offline.tokens_per_second,
            "offline_requests_per_second": offline.requests_per_second,
        }
        ceiling = offline.requests_per_second
        if ceiling <= beat:
            return Look(Figures(**measured), "all at once it answers less than the best in time")
        runs: dict[float, Run] = {}

        async def holds(rate: float) -> bool:
            say(f"server, {rate:.3g} requests/s")
            patience = self._target.first_token_seconds + self._seconds
            runs[rate] = await load.server(rate, self._seconds, patience)
            return self._target.is_met(runs[rate])

        rate = await highest_rate(holds, beat, ceiling)
        if not rate:
            pruned = "at the best one's rate it misses the target" if beat else ""
            return Look(Figures(**measured, server_requests_per_second=0.0), pruned)
        first, each = tail(runs[rate])
        return Look(
            Figures(
                **measured,
                server_requests_per_second=rate,
                server_tokens_per_second=runs[rate].tokens_per_second,
                server_first_token_seconds_p99=first,
                server_token_seconds_p99=each,
            )
        )


async def highest_rate(
    holds: Callable[[float], Awaitable[bool]], floor: float, ceiling: float
) -> float:
    """The highest rate seen at which the target holds, in (0, ceiling); 0: none.

    Args:
        floor: tried first, when it is not 0; where it does not hold nothing else is tried.
    """
    if floor and not await holds(floor):
        return 0.0
    low, high = floor, ceiling
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if await holds(middle):
            low = middle
        else:
            high = middle
    return low
