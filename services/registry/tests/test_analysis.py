"""What the analysis says of a step's evidence."""

import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.analysis import (
    AnalysisPolicy,
    Verdict,
    are_prompts_missing,
    asked_of,
    judge,
    median_seconds,
    policy_of,
)
from millrace_registry.domain import Content, Version
from millrace_registry.evidence import Answers, Evidence, Latencies, Pair
from millrace_registry.strategies import Analysis, Stage

POLICY = AnalysisPolicy(minimum_latencies=10, minimum_pairs=8)


def _answers(requests: int = 60, failures: int = 0, seconds: float = 0.05) -> Answers:
    timed = Latencies.of([seconds] * (requests - failures))
    return Answers(requests, failures, timed, timed, stops=requests - failures)


def _pairs(difference: float = 0.0, count: int = 16) -> tuple[Pair, ...]:
    return tuple(Pair(f"golden/{index}", -1.0, -1.0 + difference) for index in range(count))


GOOD = Evidence(_answers(), _answers(180), _pairs())


def test_as_good_as_the_old_one() -> None:
    judged = judge(GOOD, POLICY)
    assert judged.verdict == Verdict.GOOD
    assert "0 of 60 (0.0%) of its requests failed" in judged.reasons[0]
    assert len(judged.reasons) == 5


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(GOOD, new=_answers(60, 30)), "30 of 60 (50.0%) of its requests failed"),
        (replace(GOOD, new=_answers(seconds=0.1)), "the first token took"),
        (
            replace(GOOD, new=replace(_answers(), token=Latencies.of([0.2] * 60))),
            "each further token took",
        ),
        (replace(GOOD, new=replace(_answers(), stops=0, lengths=60)), "cut at their largest"),
        (replace(GOOD, pairs=_pairs(-1.0)), "its golden scores differ by -1 "),
        (
            replace(GOOD, asked_new=Answers(12, 6), asked_old=Answers(24)),
            "6 of 12 (50.0%) of the questions with golden prompts failed",
        ),
        (replace(GOOD, pairs=_pairs(math.nan, 2)), "2 of 2 answers could not be scored"),
    ],
)
def test_what_is_bad_is_named_with_its_figures(evidence: Evidence, reason: str) -> None:
    judged = judge(evidence, POLICY)
    assert judged.verdict == Verdict.BAD
    assert any(reason in each for each in judged.reasons)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(), "20 requests of either are needed"),
        (replace(GOOD, new=Answers()), "20 requests of either are needed"),
        (replace(GOOD, old=Answers()), "20 requests of either are needed"),
        (replace(GOOD, new=Answers(60)), "was timed in 0 answers"),
        (replace(GOOD, new=replace(_answers(), token=Latencies())), "each further token was"),
        (replace(GOOD, pairs=()), "0 prompts were scored with both versions; 8 are needed"),
        (replace(GOOD, pairs_expected=30), "16 prompts were scored with both versions; 30"),
        (replace(GOOD, pairs=(Pair("golden/0", math.nan, -1.0),) * 20), "1 prompts were"),
    ],
)
def test_no_data_is_never_good(evidence: Evidence, reason: str) -> None:
    judged = judge(evidence, POLICY)
    assert judged.verdict == Verdict.WAIT
    assert any(reason in each for each in judged.reasons)


def test_what_may_be_chance_is_waited_for() -> None:
    judged = judge(replace(GOOD, new=_answers(20, 2)), POLICY)
    assert judged.verdict == Verdict.WAIT
    assert judged.reasons[0].endswith("that can still be chance")


@pytest.mark.parametrize(
    ("answers", "verdict"), [(20, Verdict.WAIT), (80, Verdict.GOOD)], ids=["few", "many"]
)
def test_what_looks_slower_is_waited_for_while_its_answers_are_few(
    answers: int, verdict: Verdict
) -> None:
    slow = round(0.65 * answers)
    first = Latencies.of([0.15] * slow + [0.05] * (answers - slow))
    slower = Answers(answers, 0, first, Latencies.of([0.05] * answers))
    judged = judge(replace(GOOD, new=replace(slower, stops=answers)), POLICY)
    assert judged.verdict == verdict


def test_embeddings_have_no_further_tokens() -> None:
    new, old = replace(GOOD.new, token=Latencies()), replace(GOOD.old, token=Latencies())
    assert judge(replace(GOOD, new=new, old=old), POLICY).verdict == Verdict.GOOD


def test_what_is_not_asked_for_is_not_needed_but_judged_all_the_same() -> None:
    policy = AnalysisPolicy()
    bare = Evidence(Answers(20), Answers(20))
    assert judge(bare, policy).verdict == Verdict.GOOD
    assert judge(replace(bare, pairs=_pairs(-1.0)), policy).verdict == Verdict.BAD


def test_a_signal_can_be_left_out() -> None:
    slow = replace(GOOD, new=replace(_answers(seconds=9.0), stops=0, lengths=60))
    policy = replace(POLICY, max_latency_increase=None, max_cut_increase=None)
    assert judge(slow, policy).verdict == Verdict.GOOD


def test_a_large_loss_that_is_allowed_leaves_room_for_a_larger_one() -> None:
    policy = policy_of(Analysis(maximum_score_decrease=1.0), Stage())
    assert judge(replace(GOOD, pairs=_pairs(-0.9)), policy).verdict == Verdict.GOOD
    assert judge(replace(GOOD, pairs=_pairs(-5.0)), policy).verdict == Verdict.BAD


def test_quality_spends_its_part_once_whatever_the_steps() -> None:
    worse = replace(GOOD, pairs=_pairs(-0.3, 12))
    assert judge(worse, AnalysisPolicy(), 1).verdict == Verdict.BAD
    assert judge(worse, AnalysisPolicy(), 20).verdict == Verdict.BAD


def test_prompts_that_are_not_read_yet_are_waited_for() -> None:
    unread = replace(GOOD, pairs=(), pairs_expected=None)
    assert judge(unread, AnalysisPolicy()).verdict == Verdict.WAIT
    assert are_prompts_missing(unread)
    without = judge(replace(GOOD, pairs=()), AnalysisPolicy())
    assert without.verdict == Verdict.GOOD
    assert "no golden prompts" in without.reasons[-1]


def test_a_prompt_counts_once() -> None:
    again = replace(GOOD, pairs=_pairs(count=15) + (Pair("golden/20", -1.0, -9.0),) * 99)
    assert judge(again, POLICY).verdict != Verdict.BAD


def test_more_steps_need_more_evidence() -> None:
    failing = [replace(GOOD, new=_answers(60, count)) for count in range(60)]
    for steps in (1, 20):
        bad = [judge(each, POLICY, steps).verdict == Verdict.BAD for each in failing]
        assert bad == sorted(bad)
    assert judge(failing[13], POLICY).verdict == Verdict.BAD
    assert judge(failing[13], POLICY, 20).verdict == Verdict.WAIT


@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100),
    st.integers(0, 40), st.floats(0.01, 0.2), st.booleans(),
)  # fmt: skip
def test_every_evidence_is_judged(new, bad, old, worse, pairs, seconds, scored) -> None:
    evidence = Evidence(
        _answers(new + bad, bad, seconds),
        _answers(old + worse, worse),
        _pairs(0.0 if scored else math.nan, pairs),
    )
    judged = judge(evidence, POLICY)
    assert judged.reasons
    if min(new, old, pairs) < 8:
        assert judged.verdict != Verdict.GOOD


def test_few_false_alarms_though_looked_at_all_the_time() -> None:
    """Of 150 rollouts of the same version, watched for 300 answers and 30 golden prompts."""
    chance = random.Random(7)
    assert sum(_is_called_bad(chance) for _ in range(150)) <= 3


def _is_called_bad(chance: random.Random) -> bool:
    seen = {True: ([], [], []), False: ([], [], [])}  # failed, first token, further ones
    pairs: list[Pair] = []
    for number in range(300):
        failed, first, token = seen[chance.random() < 0.25]
        failed.append(chance.random() < 0.03)
        first.append(0.04 * math.exp(0.6 * chance.gauss(0, 1)))
        token.append(0.004 * math.exp(0.3 * chance.gauss(0, 1)))
        if number % 10 == 0:
            pairs.append(Pair(f"golden/{number}", -2.0, -2.0 + 0.1 * chance.gauss(0, 1)))
            sides = [
                Answers(len(a), sum(a), Latencies.of(b), Latencies.of(c))
                for a, b, c in (seen[True], seen[False])
            ]
            evidence = Evidence(*sides, tuple(pairs))
            if judge(evidence, AnalysisPolicy()).verdict == Verdict.BAD:
                return True
    return False


def test_the_median() -> None:
    assert median_seconds(Latencies.of([0.1, 0.2, 0.3])) == pytest.approx(0.2, rel=0.05)
    assert median_seconds(Latencies.of([1e9])) > 60
    with pytest.raises(ValueError, match="nothing was timed"):
        median_seconds(Latencies())


def test_prompts_that_were_all_asked_are_waited_for_no_more() -> None:
    """Seven that lost a little, by chance or not: no eighth will come to tell."""
    few = replace(GOOD, pairs=_pairs(-0.3, 7))
    assert judge(replace(few, pairs_expected=8), AnalysisPolicy()).verdict == Verdict.WAIT
    assert judge(few, AnalysisPolicy()).verdict == Verdict.GOOD


def test_what_is_broken_shows_in_four_prompts() -> None:
    assert judge(replace(GOOD, pairs=_pairs(-3.0, 4)), AnalysisPolicy()).verdict == Verdict.BAD
    assert judge(replace(GOOD, pairs=_pairs(-1.5, 4)), AnalysisPolicy()).verdict == Verdict.GOOD
    assert judge(replace(GOOD, pairs=_pairs(-3.0, 3)), AnalysisPolicy()).verdict == Verdict.GOOD


def test_what_a_tuning_job_makes_may_lose_more() -> None:
    trained, tuned = (
        Version(
            "acme",
            "demo",
            1,
            "",
            Content("file:///a", "sha256:0", 1),
            {"name": f"tenants/acme/{stage}/x/checkpoints/y"},
            {},
            "",
            datetime(2030, 1, 1, tzinfo=UTC),
            "",
        )
        for stage in ("runs", "jobs")
    )
    said = Analysis(maximum_score_decrease=0.1)
    assert asked_of(Analysis(), trained) == asked_of(Analysis(), None) == Analysis()
    assert asked_of(said, tuned) == said
    policy = policy_of(asked_of(Analysis(), tuned), Stage())
    assert judge(replace(GOOD, pairs=_pairs(-0.3)), policy).verdict == Verdict.GOOD
    assert judge(replace(GOOD, pairs=_pairs(-1.5)), policy).verdict == Verdict.BAD
