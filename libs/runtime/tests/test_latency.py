"""Latencies are counted by bounds that gateways and the registry share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_runtime import latency

SECONDS = st.floats(0.0005, 50.0)


def counted(values: list[float]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        counts = latency.added(counts, {latency.index_of(value): 1})
    return counts


@given(SECONDS)
def test_a_latency_is_at_most_its_bound_and_above_the_one_before(seconds: float) -> None:
    index = latency.index_of(seconds)
    assert seconds <= latency.BOUNDS[index]
    assert index == 0 or latency.BOUNDS[index - 1] < seconds


@given(st.lists(SECONDS, min_size=1), st.sampled_from((0.5, 0.95, 1.0)))
def test_quantiles_are_right_to_a_bound(values: list[float], share: float) -> None:
    found = latency.quantile(counted(values), share)
    below = [value for value in values if found is not None and value <= found]
    assert len(below) >= share * len(values)
    assert found is not None
    assert any(found / 1.051 <= value <= found for value in values)


@given(st.lists(SECONDS), st.lists(SECONDS))
def test_what_came_since_is_the_difference(earlier: list[float], later: list[float]) -> None:
    assert latency.since(counted(earlier + later), counted(earlier)) == counted(later)


def test_what_lasts_longer_than_all_bounds_counts_too() -> None:
    assert latency.index_of(1e9) == len(latency.BOUNDS)
    assert latency.quantile({len(latency.BOUNDS): 1}, 0.5) == latency.BOUNDS[-1]
    assert latency.quantile({}, 0.5) is None


def test_the_bounds_reach_from_under_a_millisecond_to_most_of_a_minute() -> None:
    assert latency.BOUNDS[0] == 0.0005
    assert latency.BOUNDS[-1] == pytest.approx(57.98, abs=0.1)
