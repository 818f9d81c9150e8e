"""What the analysis says has its effect in every state in which a version is judged."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from millrace_registry import rollout as rules
from millrace_registry.domain import Rollout, RolloutState
from millrace_registry.evidence import Answers, Evidence, Latencies, Pair
from millrace_registry.rollout import Observed, Reverse, Wait
from millrace_registry.strategies import (
    Analysis,
    BlueGreen,
    Canary,
    Immediate,
    Shadow,
    Split,
    Stage,
    Strategy,
)
from millrace_registry.traffic import Traffic

START = datetime(2030, 1, 1, tzinfo=UTC)
STATES = [
    (RolloutState.CANARY, Canary()),
    (RolloutState.SHADOW, Shadow()),
    (RolloutState.STANDBY, BlueGreen()),
    (RolloutState.SWITCHED, BlueGreen()),
    (RolloutState.SPLIT, Split()),
]
SLOW, QUICK = Latencies.of([0.4] * 50), Latencies.of([0.1] * 50)
WORSE = tuple(Pair(f"golden/{number}", -1.0, -2.0) for number in range(30))
AT = Observed(
    now=START + timedelta(seconds=2), is_ready=True, new=Traffic(50), old=Traffic(50)
)  # fmt: skip


def rollout(state: RolloutState, paused: bool = False) -> Rollout:
    return Rollout(
        tenant="acme",
        id="rollout-1",
        deployment="deployment-1",
        model="demo",
        to_version=2,
        from_version=1,
        create_time=START,
        update_time=START,
        step_time=START,
        traceparent="",
        state=state,
        paused=paused,
    )


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("state", "strategy"), STATES)
def test_bad_reverses_at_once(state: RolloutState, strategy: Strategy, paused: bool) -> None:
    """Before the step's time is over, and though the rollout is paused."""
    at = replace(AT, evidence=Evidence(pairs=WORSE))
    action = rules.next_action(rollout(state, paused), strategy, at)
    assert isinstance(action, Reverse)
    assert action.reason == (
        "its golden scores differ by -1 in the mean of 30 prompts; -0.05 is allowed"
    )
    assert rules.next_action(rollout(state, paused), strategy, AT) == Wait()


def test_a_slow_version_is_reversed() -> None:
    evidence = Evidence(Answers(first_token=SLOW), Answers(first_token=QUICK))
    at = replace(AT, evidence=evidence)
    action = rules.next_action(rollout(RolloutState.CANARY), Canary(), at)
    assert isinstance(action, Reverse)
    assert "the first token took" in action.reason


@pytest.mark.parametrize("expected", [5, None])
def test_prompts_that_are_not_scored_yet_are_waited_for(expected: int | None) -> None:
    evidence = Evidence(pairs_expected=expected)
    at = replace(AT, now=START + timedelta(seconds=60), evidence=evidence)
    assert rules.next_action(rollout(RolloutState.CANARY), Canary(), at) == Wait()


@pytest.mark.parametrize(
    "strategy", [Canary(), Shadow(), BlueGreen(), Split()], ids=lambda each: type(each).__name__
)
def test_prompts_are_scored_before_the_first_share(strategy: Strategy) -> None:
    loading = replace(rollout(RolloutState.LOADING), ready_time=START)
    for expected in (None, 30):
        missing = replace(AT, evidence=Evidence(pairs_expected=expected))
        assert rules.next_action(loading, strategy, missing) == Wait()
        late = replace(missing, now=START + rules.SILENCE_LIMIT + timedelta(seconds=1))
        assert isinstance(rules.next_action(loading, strategy, late), rules.EnterStep)
        gone = replace(missing, old_is_gone=True)
        assert isinstance(rules.next_action(loading, strategy, gone), rules.EnterStep)
    worse = replace(AT, evidence=Evidence(pairs=WORSE[:16], pairs_expected=30))
    assert isinstance(rules.next_action(loading, strategy, worse), Reverse)
    alike = tuple(replace(pair, new=pair.old) for pair in WORSE)
    scored = replace(AT, evidence=Evidence(pairs=alike, pairs_expected=30))
    assert isinstance(rules.next_action(loading, strategy, scored), rules.EnterStep)


def test_immediate_waits_for_no_prompts() -> None:
    loading = replace(rollout(RolloutState.LOADING), ready_time=START)
    at = replace(AT, evidence=Evidence(pairs_expected=None))
    assert isinstance(rules.next_action(loading, Immediate(), at), rules.Settle)


def test_a_deployment_says_what_is_too_much() -> None:
    slower = Evidence(Answers(first_token=SLOW), Answers(first_token=QUICK))
    both = replace(AT, evidence=replace(slower, pairs=WORSE))
    lenient = Analysis(maximum_latency_increase=9.0, maximum_score_decrease=2.0)
    now = START + timedelta(seconds=60)
    at = replace(both, now=now, analysis=lenient)
    assert isinstance(rules.next_action(rollout(RolloutState.CANARY), Canary(), at), rules.Settle)
    strict = replace(AT, now=now, analysis=Analysis(minimum_pairs=5))
    assert rules.next_action(rollout(RolloutState.CANARY), Canary(), strict) == Wait()
    paired = replace(AT, evidence=Evidence(pairs=WORSE[:12]))
    assert isinstance(rules.next_action(rollout(RolloutState.CANARY), Canary(), paired), Reverse)
    surer = replace(paired, analysis=Analysis(false_alarm_rate=1e-6))
    assert rules.next_action(rollout(RolloutState.CANARY), Canary(), surer) == Wait()


def test_without_the_old_version_one_that_never_fails_is_the_measure() -> None:
    gone = replace(AT, now=START + timedelta(seconds=60), old=Traffic(), old_is_gone=True)
    assert isinstance(rules.next_action(rollout(RolloutState.CANARY), Canary(), gone), rules.Settle)
    failing = replace(gone, new=Traffic(50, 25))
    assert isinstance(rules.next_action(rollout(RolloutState.CANARY), Canary(), failing), Reverse)


@pytest.mark.parametrize(
    ("seconds", "new", "old", "missing"),
    [
        (1.5, 0, 0, (4, 4)),
        (3.0, 0, 0, (8, 8)),
        (9.0, 20, 20, (4, 4)),  # what was asked has not decided
        (0.0, 100, 0, (-100, 8)),  # traffic goes to the new one alone
        (9999.0, 160, 160, (0, 0)),
    ],
)
def test_questions(seconds: float, new: int, old: int, missing: tuple[int, int]) -> None:
    stage = Stage("canary", 3.0, 8, 0.05)
    at = Observed(START + timedelta(seconds=seconds), new=Traffic(new), old=Traffic(old))
    assert rules.questions_missing(rollout(RolloutState.CANARY), stage, at) == missing
