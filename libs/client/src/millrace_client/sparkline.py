"""Small pictures of many numbers, in one line of text."""

import itertools
import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"


def sparkline(values: Sequence[float], width: int) -> str:
    """``█▆▄▃▂▁``: the lowest value is the lowest bar, the highest the highest.

    More values than ``width`` are drawn as the means of equal parts. What is not finite counts
    for nothing; a part without any other value is a dot.
    """
    means = [_mean(part) for part in _parts(values, width)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return _NOTHING * len(means)
    low, high = min(known), max(known)
    return "".join(_bar(mean, low, high) for mean in means)


def _parts(values: Sequence[float], width: int) -> list[Sequence[float]]:
    count = min(len(values), width)
    edges = [index * len(values) // count for index in range(count + 1)] if count else []
    return [values[start:end] for start, end in itertools.pairwise(edges)]


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    # Each divided before they are added: a sum of large ones would be infinite.
    return math.fsum(value / len(finite) for value in finite) if finite else None


def _bar(value: float | None, low: float, high: float) -> str:
    if value is None:
        return _NOTHING
    # Halves, for the range of the largest floats is infinite.
    span = high / 2 - low / 2
    share = (value / 2 - low / 2) / span if span > 0 else 0.5
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
