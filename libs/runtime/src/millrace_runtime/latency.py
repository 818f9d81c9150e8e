"""The bounds by which latencies are counted: gateways count, and the registry judges by the counts.

A histogram is sparse: how many latencies were at most each bound and more than the one before, by
the bound's index. Standard library only.
"""

import bisect
from collections.abc import Mapping

# Upper bounds in seconds, 5 % apart: fine enough that ranks of latencies lose nothing that matters.
BOUNDS = tuple(0.0005 * 1.05**index for index in range(240))

Counts = Mapping[int, int]


def index_of(seconds: float) -> int:
    """Of the smallest bound that is not below ``seconds``; ``len(BOUNDS)`` when all are."""
    return bisect.bisect_left(BOUNDS, seconds)


def added(one: Counts, other: Counts) -> dict[int, int]:
    """What both have counted."""
    return {index: one.get(index, 0) + other.get(index, 0) for index in {*one, *other}}


def since(now: Counts, earlier: Counts) -> dict[int, int]:
    """What has been counted since; counts of 0 are left out."""
    found = {index: now.get(index, 0) - earlier.get(index, 0) for index in {*now, *earlier}}
    return {index: count for index, count in found.items() if count}


def quantile(counts: Counts, share: float) -> float | None:
    """Seconds that ``share`` of the latencies do not exceed; None when there are none.

    A bound, so up to 5 % too large; latencies beyond the last bound count as it.
    """
    total = sum(counts.values())
    reached = 0
    for index in sorted(counts):
        reached += counts[index]
        if reached >= share * total and reached > 0:
            return BOUNDS[min(index, len(BOUNDS) - 1)]
    return None
