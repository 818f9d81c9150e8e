"""The pure rules, and a world that is driven by them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace_registry import rollout as rules
from millrace_registry.domain import Rollout, RolloutState
from millrace_registry.rollout import EnterStep, Load, Observed, Reverse, Settle, Supersede, Wait
from millrace_registry.strategies import Canary, Immediate, Strategy
from millrace_registry.traffic import Traffic

START = datetime(2030, 1, 1, tzinfo=UTC)
CANARY = Canary(steps=(0.1, 0.5), bake_seconds=3, minimum_requests=8)


def rollout(state: RolloutState, **changes: object) -> Rollout:
    made = Rollout(
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
    )
    return replace(made, **changes)


def act(state: RolloutState, strategy: Strategy = CANARY, **observed: object) -> rules.Action:
    at = {"now": START + timedelta(seconds=10), "is_ready": state.is_judged, **observed}
    return rules.next_action(rollout(state), strategy, Observed(**at))


def test_it_waits_for_its_turn_and_gives_way_to_a_newer_one() -> None:
    assert act(RolloutState.PENDING) == Load()
    assert act(RolloutState.PENDING, another_active=True) == Wait()
    assert act(RolloutState.PENDING, newer_waits=True, another_active=True) == Supersede()


def test_loading_ends_in_the_first_step_or_in_reversal() -> None:
    assert act(RolloutState.LOADING) == Wait()
    assert act(RolloutState.LOADING, is_ready=True) == EnterStep(0, 0.1)
    reversed_ = act(RolloutState.LOADING, load_error="no such file")
    assert isinstance(reversed_, Reverse)
    assert "no such file" in reversed_.reason
    late = START + rules.LOADING_LIMIT + timedelta(seconds=1)
    assert isinstance(act(RolloutState.LOADING, now=late), Reverse)


def test_the_first_version_and_an_immediate_one_settle_when_they_answer() -> None:
    ready = Observed(now=START, is_ready=True)
    first = rollout(RolloutState.LOADING, from_version=0)
    assert isinstance(rules.next_action(first, CANARY, ready), Settle)
    assert isinstance(act(RolloutState.LOADING, Immediate(), is_ready=True), Settle)


@pytest.mark.parametrize("requests", [0, 7])
def test_no_data_is_never_a_pass(requests: int) -> None:
    few = Traffic(requests=requests)
    assert act(RolloutState.CANARY, new=few) == Wait()
    late = START + rules.SILENCE_LIMIT + timedelta(seconds=60)
    ended = act(RolloutState.CANARY, new=few, now=late)
    assert isinstance(ended, Reverse)
    assert "no data is never a pass" in ended.reason


def test_more_errors_than_before_reverse_it_with_the_figures() -> None:
    action = act(RolloutState.CANARY, new=Traffic(10, 7), old=Traffic(100, 1))
    figures = "7 of 10 (70.0%) of its requests failed, of the old version's 1 of 100 (1.0%)"
    assert action == Reverse(figures)
    assert act(RolloutState.CANARY, new=Traffic(10, 1), old=Traffic(100, 1)) == Wait()
    assert act(RolloutState.CANARY, new=Traffic(100, 5), old=Traffic(100, 3)) == EnterStep(1, 0.5)


def test_a_good_step_bakes_before_the_next() -> None:
    good, early = Traffic(50), START + timedelta(seconds=1)
    assert act(RolloutState.CANARY, new=good, old=good, now=early) == Wait()
    assert act(RolloutState.CANARY, new=good, old=good) == EnterStep(1, 0.5)
    last = rollout(RolloutState.CANARY, step=1)
    at = Observed(now=START + timedelta(seconds=10), is_ready=True, new=good, old=good)
    assert isinstance(rules.next_action(last, CANARY, at), Settle)


def test_a_deployment_made_immediate_ends_its_canary() -> None:
    assert isinstance(act(RolloutState.CANARY, Immediate()), Settle)
    broken = act(RolloutState.CANARY, Immediate(), load_error="killed")
    assert isinstance(broken, Reverse)


@pytest.mark.parametrize("state", [RolloutState.LOADING, RolloutState.CANARY])
def test_time_in_which_nobody_looked_is_no_silence(state: RolloutState) -> None:
    """A registry, or a Triton, that was away for an hour says nothing of the version."""
    now = START + timedelta(hours=1)
    assert isinstance(act(state, now=now), Reverse)
    assert act(state, now=now, watched_since=now - timedelta(seconds=5)) == Wait()
    assert isinstance(act(state, now=now, watched_since=now - timedelta(minutes=5)), Reverse)


class RolloutWorld(RuleBasedStateMachine):
    """Traffic and time as they come; the rules decide; nothing unproven is ever promoted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.rollout = rollout(RolloutState.PENDING)
        self.is_ready = False
        self.new, self.old = Traffic(), Traffic()

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def it_gets_ready(self) -> None:
        self.is_ready = True

    @precondition(lambda self: self.rollout.state == RolloutState.CANARY)
    @rule(requests=st.integers(0, 20), failed=st.integers(0, 20))
    def traffic_comes(self, requests: int, failed: int) -> None:
        self.new = Traffic(self.new.requests + requests, self.new.failures + min(requests, failed))
        self.old = Traffic(self.old.requests + requests, self.old.failures)

    @precondition(lambda self: not self.rollout.state.has_ended)
    @rule(error=st.sampled_from(["", "", "", "it broke"]))
    def a_look(self, error: str) -> None:
        observed = Observed(
            self.now, is_ready=self.is_ready, load_error=error, new=self.new, old=self.old
        )
        action = rules.next_action(self.rollout, CANARY, observed)
        in_step, _ = rules.step_traffic(self.rollout, observed)
        if isinstance(action, Load):
            self._enter(RolloutState.LOADING)
        elif isinstance(action, EnterStep):
            assert self.is_ready
            assert action.share == CANARY.steps[action.step]
            if self.rollout.state == RolloutState.CANARY:
                self._assert_proven(in_step)
            before = {"new_before": self.new, "old_before": self.old}
            share = {"step": action.step, "traffic_share": action.share}
            self._enter(RolloutState.CANARY, **before, **share)
        elif isinstance(action, Settle):
            self._assert_proven(in_step)
            assert self.rollout.step == len(CANARY.steps) - 1
            self._enter(RolloutState.SETTLED, traffic_share=1.0)
        elif isinstance(action, Reverse):
            self._enter(RolloutState.REVERSED, traffic_share=0.0)

    def _assert_proven(self, in_step: Traffic) -> None:
        assert self.rollout.state == RolloutState.CANARY
        assert in_step.requests >= CANARY.minimum_requests
        rate = in_step.failures / in_step.requests
        assert rate <= CANARY.maximum_error_rate_increase + 1e-9
        assert self.now - (self.rollout.step_time or START) >= timedelta(seconds=3)

    def _enter(self, state: RolloutState, **changes: object) -> None:
        self.rollout = replace(
            self.rollout, state=state, step_time=self.now, update_time=self.now, **changes
        )

    @invariant()
    def only_a_canary_or_a_settled_one_has_traffic(self) -> None:
        has_traffic = self.rollout.traffic_share > 0
        assert has_traffic == (self.rollout.state in (RolloutState.CANARY, RolloutState.SETTLED))


TestRolloutWorld = RolloutWorld.TestCase
TestRolloutWorld.settings = settings(max_examples=200, deadline=None)
