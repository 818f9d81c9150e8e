"""Figures against known ones, and false alarms and power over simulated streams."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_registry.evidence import Latencies
from millrace_registry.sequential import more_failures, slower, worse

ALARM = math.log(1 / 0.01)
ONE_OF_FIVE = math.log(5 / 0.01)
counts = st.tuples(st.integers(1, 300), st.floats(0, 1)).map(lambda n: (int(n[0] * n[1]), n[0]))


def test_a_version_that_always_fails_is_told_after_a_few_requests() -> None:
    assert more_failures(5, 5, 0, 15, 0.05) > ALARM
    assert more_failures(2, 2, 0, 6, 0.05) < ALARM


def test_nothing_says_nothing() -> None:
    assert more_failures(0, 0, 0, 0, 0.05) == pytest.approx(0)
    assert slower([0] * 5, [1] * 5, 0) == 0
    assert worse([], 1.0, 0.1) == pytest.approx(0)


@given(counts, counts, st.sampled_from([0.0, 0.02, 0.3]))
def test_a_rate_within_the_margin_is_never_evidence(new, old, margin) -> None:
    if new[0] / new[1] <= old[0] / old[1] + margin:
        assert more_failures(*new, *old, margin) < 1e-9


@given(counts, counts)
def test_one_failure_more_is_no_less_evidence(new, old) -> None:
    values = [more_failures(k, new[1], *old, 0.05) for k in range(new[0], new[1] + 1)]
    alarming = [value for value in values if value >= ALARM]
    assert all(one <= other + 1e-9 for one, other in pairwise(alarming))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=40), st.integers(0, 6))
def test_equal_latencies_are_no_evidence(seconds: list[float], shift: int) -> None:
    counts = Latencies.of(seconds).counts
    assert slower(counts, counts, shift) <= math.log(2)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.data(),
)
def test_one_latency_later_is_no_less_evidence(new, old, data) -> None:
    """Of the statistic; the variance may fall or rise, so where it is at its floor or tied."""
    before, after = [0] * 12, [0] * 12
    for place in new:
        before[place] += 1
        after[min(11, place + 12)] += 1
    beside = [sum(1 for each in old if each == place) for place in range(12)]
    assert slower(after, beside, 0) >= slower(before, beside, 0) - 1e-9


def test_ties_are_half_of_either() -> None:
    assert slower([0, 40, 0], [0, 40, 0], 0) == pytest.approx(
        math.log(1.0) + 0.5 * math.log(2 / 22), abs=1e-9
    )


@given(st.lists(st.floats(-5, 5), max_size=50))
def test_a_difference_beyond_the_bound_counts_as_it(differences: list[float]) -> None:
    clipped = [max(-0.5, min(0.5, each)) for each in differences]
    assert worse(differences, 0.5, 0.05) == worse(clipped, 0.5, 0.05)


@given(st.lists(st.floats(-0.5, 0.5), max_size=30), st.floats(-0.5, 0.5), st.floats(0, 0.5))
def test_a_worse_score_is_no_less_evidence(rest: list[float], one: float, by: float) -> None:
    assert worse([*rest, one - by], 0.5, 0.05) >= worse([*rest, one], 0.5, 0.05) - 1e-9


def test_an_unscored_answer_is_the_worst_one() -> None:
    assert worse([-math.inf] * 12, 0.5, 0.05) == worse([-0.5] * 12, 0.5, 0.05) > ALARM


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.3), (0.02, 0.07)])
def test_few_false_alarms_of_failures_though_looked_at_after_every_request(rates) -> None:
    """Of 300 streams at 1 % each; more than 9 would happen once in 3,000 tries."""
    chance = random.Random(1)
    assert sum(_alarms_of_failures(chance, *rates) is not None for _ in range(300)) <= 9


@pytest.mark.parametrize(("rate", "within"), [(0.2, 120), (0.5, 30), (1.0, 7)])
def test_failures_are_found(rate: float, within: int) -> None:
    chance = random.Random(2)
    found = [_alarms_of_failures(chance, 0.0, rate) for _ in range(60)]
    assert sorted(each or 1000 for each in found)[50] <= within


@pytest.mark.parametrize("ratio", [1.0, 1.2])
@pytest.mark.parametrize("sigma", [0.1, 0.8])
def test_few_false_alarms_of_latency(ratio: float, sigma: float) -> None:
    """Up to the margin itself; ties are many where the spread is small."""
    chance = random.Random(3)
    assert sum(_alarms_of_latency(chance, ratio, sigma) is not None for _ in range(60)) <= 3


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_twice_the_latency_is_found(sigma: float) -> None:
    chance = random.Random(4)
    found = [_alarms_of_latency(chance, 2.0, sigma) for _ in range(40)]
    assert sorted(each or 1000 for each in found)[36] <= 40


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.3), (-0.05, 0.3), (-0.05, 0.02)])
def test_few_false_alarms_of_quality(mean: float, deviation: float) -> None:
    chance = random.Random(5)
    found = [_alarms_of_quality(chance, mean, deviation) for _ in range(150)]
    assert sum(each is not None for each in found) <= 6


@pytest.mark.parametrize("deviation", [1e-4, 0.05, 0.1, 0.3])
def test_few_false_alarms_of_versions_that_are_alike(deviation: float) -> None:
    """At 0.2 %, as of one signal of five; more than 3 of 150 would happen once in 3,000 tries."""
    chance = random.Random(8)
    found = [_alarms_of_quality(chance, 0.0, deviation, ONE_OF_FIVE) for _ in range(150)]
    assert sum(each is not None for each in found) <= 3


def test_few_false_alarms_of_versions_that_differ_by_leaps() -> None:
    """Half of the differences large, in either direction, by chance: the widest spread there is."""
    chance = random.Random(9)
    alarms = 0
    for _ in range(150):
        differences = [chance.choice((-5.0, 5.0, 0.0, 0.0)) for _ in range(40)]
        looks = (worse(differences[:count], 0.5, 0.05) for count in range(1, 41))
        alarms += any(sure >= ONE_OF_FIVE for sure in looks)
    assert alarms <= 3


@pytest.mark.parametrize(
    ("loss", "deviation", "within"),
    [(0.3, 1e-4, 12), (0.3, 0.1, 14), (0.3, 0.2, 28), (2.0, 0.1, 12), (0.15, 0.05, 22)],
)
def test_a_loss_of_quality_is_found(loss: float, deviation: float, within: int) -> None:
    """In 9 of 10 rollouts, at 0.2 %."""
    chance = random.Random(6)
    found = [_alarms_of_quality(chance, -loss, deviation, ONE_OF_FIVE) for _ in range(60)]
    assert sorted(each or 1000 for each in found)[54] <= within


@settings(max_examples=30)
@given(st.permutations([0.1, -0.4, 0.0, -0.5, 0.3, -0.2]))
def test_the_order_does_not_matter(differences: list[float]) -> None:
    expected = worse(sorted(differences), 0.5, 0.05)
    assert worse(differences, 0.5, 0.05) == pytest.approx(expected)


def _alarms_of_failures(chance: random.Random, old_rate: float, new_rate: float) -> int | None:
    """Requests of the new version, which gets a quarter of 400, until the alarm; None: none."""
    seen = {True: [0, 0], False: [0, 0]}
    for _ in range(400):
        is_new = chance.random() < 0.25
        failed = chance.random() < (new_rate if is_new else old_rate)
        seen[is_new][0] += failed
        seen[is_new][1] += 1
        if failed and is_new and more_failures(*seen[True], *seen[False], 0.05) >= ALARM:
            return seen[True][1]
    return None


def _alarms_of_latency(chance: random.Random, ratio: float, sigma: float) -> int | None:
    new, old = [0] * 60, [0] * 60
    for _ in range(300):
        is_new = chance.random() < 0.25
        seconds = math.exp(sigma * chance.gauss(0, 1)) * (ratio if is_new else 1)
        place = max(0, min(59, 25 + math.ceil(math.log(seconds) / math.log(1.05))))
        (new if is_new else old)[place] += 1
        if is_new and slower(new, old, 4) >= ALARM:
            return sum(new)
    return None


def _alarms_of_quality(
    chance: random.Random, mean: float, deviation: float, alarm: float = ALARM
) -> int | None:
    differences: list[float] = []
    for _ in range(60):
        differences.append(chance.gauss(mean, deviation))
        if worse(differences, 0.5, 0.05) >= alarm:
            return len(differences)
    return None
