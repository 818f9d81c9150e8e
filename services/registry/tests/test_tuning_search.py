"""Which settings are tried, and which are kept: never ones that miss the target."""

import asyncio
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_registry.tuning.decision import decide
from millrace_registry.tuning.load import Answer, AskFailed, Load, Run, Shape, Target, tail
from millrace_registry.tuning.measure import Measurement, highest_rate
from millrace_registry.tuning.search import Search
from millrace_registry.tuning.space import Limits, Space, doublings

SCORES = st.floats(0, 1000, allow_nan=False)
LIMITS = st.builds(
    Limits, st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 300)
)


@given(SCORES, SCORES, SCORES, SCORES)
def test_what_misses_the_target_or_is_no_better_never_wins(
    present: float, control: float, best: float, confirmation: float
) -> None:
    decision = decide(present, control, best, confirmation)
    if decision.is_better:
        assert min(best, confirmation) > max(present, control) * (1 + decision.noise)
        assert min(best, confirmation) > 0
    assert decision.noise >= 0.05
    assert decision.reason


@given(SCORES, SCORES)
def test_a_tie_keeps_the_present_settings(score: float, other: float) -> None:
    assert not decide(score, other, score, score).is_better


def test_settings_that_alone_meet_the_target_win() -> None:
    assert decide(0, 0, 3, 2).is_better
    assert not decide(0, 0, 3, 0).is_better


@given(LIMITS)
def test_every_candidate_is_within_the_limits(limits: Limits) -> None:
    for candidate in Space(limits).all():
        assert candidate.instance_count <= limits.instance_count
        assert candidate.instance_count * candidate.threads <= limits.threads
        assert candidate.instance_count * candidate.cache_gibibytes <= limits.cache_gibibytes
        assert candidate.max_batch_size <= limits.max_batch_size
    assert Space(limits).all()


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 100))
def test_each_candidate_is_proposed_once_and_the_same_seed_proposes_the_same(seed: int) -> None:
    space = Space(Limits(2, 2, 2, 16))
    proposed = []
    for _ in range(2):
        search, found = Search(space, seed), []
        while candidate := search.next():
            found.append(candidate)
            search.tell(candidate, float(candidate.max_batch_size))
        proposed.append(found)
    assert proposed[0] == proposed[1]
    assert sorted(map(astuple, proposed[0])) == sorted(map(astuple, space.all()))


def test_doublings_end_with_the_limit() -> None:
    assert [doublings(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@given(st.floats(0.1, 100), st.floats(0, 1), st.floats(0, 2))
def test_the_highest_rate_holds_and_the_target_is_looked_for_from_the_best(
    ceiling: float, share: float, capacity: float
) -> None:
    tried = []

    async def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= capacity * ceiling

    floor = share * ceiling
    found = asyncio.run(highest_rate(holds, floor, ceiling))
    assert found == 0 or found <= capacity * ceiling
    assert found == 0 or found >= floor
    assert all(0 < rate <= ceiling for rate in tried)
    if floor and capacity * ceiling < floor:
        assert (found, tried) == (0, [floor])


def test_what_was_not_answered_was_not_in_time() -> None:
    quick = Answer(0.1, 0.2, 11)
    target = Target(first_token_seconds=0.1, token_seconds=0.02)
    assert target.is_met(Run([quick] * 100, 10))
    assert target.is_met(Run([quick] * 99, 10, failed=1))
    assert not target.is_met(Run([quick] * 98, 10, failed=2))
    assert not target.is_met(Run([], 10, failed=1))
    assert not Target(0.05, 1).is_met(Run([quick], 1))
    assert not Target(1, 0.005).is_met(Run([quick], 1))
    assert tail(Run([quick], 1)) == pytest.approx((0.1, 0.01))


def test_a_request_that_is_too_long_is_cut_to_the_context() -> None:
    assert Shape([(10, 5), (100, 20), (10, 500)]).within(64).pairs == [(10, 5), (44, 20), (1, 63)]


class PlayedEngine:
    """Answers at once, and says that it took ``first_token_seconds`` when it is alone."""

    def __init__(self, first_token_seconds: float = 0.01) -> None:
        self.first_token_seconds = first_token_seconds
        self.asked: list[tuple[int, int, int]] = []

    async def ask(self, prompt_tokens: int, answer_tokens: int, seed: int) -> Answer:
        self.asked.append((prompt_tokens, answer_tokens, seed))
        await asyncio.sleep(0.001)
        first = self.first_token_seconds
        return Answer(first, first + 0.001 * answer_tokens, answer_tokens)


class BrokenEngine:
    async def ask(self, prompt_tokens: int, answer_tokens: int, seed: int) -> Answer:
        raise AskFailed("it broke off")


def look(engine: PlayedEngine, target: Target, beat: float = 0.0):
    said: list[str] = []
    load = Load(engine, Shape([(8, 4)]), seed=1)
    return asyncio.run(Measurement(target, 0.02).look(load, beat, said.append)), said


def test_a_look_measures_all_three_scenarios() -> None:
    found, said = look(PlayedEngine(), Target(60, 60))
    assert found.pruned == ""
    assert found.figures.single_stream_seconds_p90 == pytest.approx(0.014, abs=0.01)
    assert 0 < found.score <= (found.figures.offline_requests_per_second or 0)
    assert said[:2] == ["single stream", "offline"]
    assert all(phase.startswith("server, ") for phase in said[2:])


def test_a_look_that_never_meets_the_target_has_no_score() -> None:
    found, _ = look(PlayedEngine(first_token_seconds=5), Target(1, 1))
    assert (found.score, found.pruned) == (0, "")


def test_what_cannot_win_any_more_is_given_up() -> None:
    found, said = look(PlayedEngine(), Target(60, 60), beat=1e9)
    assert found.pruned
    assert said == ["single stream", "offline"]
    found, said = look(PlayedEngine(first_token_seconds=5), Target(1, 1), beat=0.5)
    assert found.pruned
    assert len(said) == 3


def test_an_engine_that_breaks_fails_the_look() -> None:
    with pytest.raises(AskFailed):
        asyncio.run(Load(BrokenEngine(), Shape([(8, 4)]), 1).offline(3))


def test_the_same_seed_asks_the_same_and_no_prompt_twice() -> None:
    asked = []
    for _ in range(2):
        engine = PlayedEngine()
        load = Load(engine, Shape([(8, 4), (16, 2)]), seed=7)
        asyncio.run(load.offline(20))
        asked.append(engine.asked)
    assert asked[0] == asked[1]
    assert len({seed for _, _, seed in asked[0]}) == 20
