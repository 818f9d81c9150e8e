"""What counts as a leak. The run itself is too long for every day: ``make chaos ONLY=soak``."""

from tests.chaos import soak
from tests.chaos.soak import Sample


def samples(memory_per_swap: float, descriptors_per_swap: float = 0.0) -> list[Sample]:
    return [
        Sample(
            "registry", swap, 100 + memory_per_swap * swap, int(40 + descriptors_per_swap * swap)
        )
        for swap in range(200)
    ]


def test_what_stays_flat_is_no_leak() -> None:
    assert soak.rising(samples(0.0)) == []


def test_memory_that_rises_is_a_leak() -> None:
    (said,) = soak.rising(samples(1.0))
    assert said.startswith("registry grew by")


def test_descriptors_that_rise_are_a_leak() -> None:
    (said,) = soak.rising(samples(0.0, descriptors_per_swap=0.5))
    assert "file descriptors" in said
