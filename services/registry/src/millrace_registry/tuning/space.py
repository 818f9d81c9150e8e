"""Which settings of an engine can be tried. Standard library only."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Candidate:
    """Settings of one engine, and how many engines there are (``domain.Serving``)."""

    instance_count: int
    max_batch_size: int
    threads: int
    cache_gibibytes: int


@dataclass(frozen=True)
class Limits:
    """What all engines together may use; ``max_batch_size`` is each engine's own."""

    instance_count: int
    threads: int
    cache_gibibytes: int
    max_batch_size: int


class Space:
    """Powers of two within the limits, and the limits themselves."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        sizes = [size for size in _BATCH_SIZES if size <= limits.max_batch_size]
        self.choices: dict[str, Sequence[int]] = {
            "instance_count": doublings(limits.instance_count),
            "max_batch_size": sizes or [limits.max_batch_size],
            "threads": doublings(limits.threads),
            "cache_gibibytes": doublings(limits.cache_gibibytes),
        }

    def permits(self, candidate: Candidate) -> bool:
        """All of its engines have enough threads and memory."""
        count = candidate.instance_count
        return (
            count * candidate.threads <= self._limits.threads
            and count * candidate.cache_gibibytes <= self._limits.cache_gibibytes
        )

    def all(self) -> list[Candidate]:
        """Every candidate that is permitted."""
        found = (Candidate(*values) for values in itertools.product(*self.choices.values()))
        return [candidate for candidate in found if self.permits(candidate)]


def doublings(largest: int) -> list[int]:
    """1, 2, 4, … up to ``largest``, which is the last."""
    powers = [1 << exponent for exponent in range(largest.bit_length())]
    return [power for power in powers if power < largest] + [largest]
