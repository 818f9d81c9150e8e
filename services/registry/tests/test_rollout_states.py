"""The rules drive a model of the world: versions keep coming, fail, answer, and take over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace_registry import rollout as rules
from millrace_registry.domain import (
    Content,
    Interface,
    Model,
    Rollout,
    RolloutState,
    Route,
    Version,
)
from millrace_registry.routing import route_of_model
from millrace_registry.strategies import (
    BlueGreen,
    Canary,
    Immediate,
    Shadow,
    Split,
    SplitEnd,
    Strategy,
)
from millrace_registry.traffic import Traffic

START = datetime(2030, 1, 1, tzinfo=UTC)
STRATEGIES: tuple[Strategy, ...] = (
    Immediate(),
    Canary(steps=(0.25,), bake_seconds=3, minimum_requests=8),
    Canary(steps=(0.1, 0.5, 0.9), bake_seconds=1, minimum_requests=3),
    Shadow(share=0.5, bake_seconds=2, minimum_requests=4),
    Shadow(0.2, 2, 4, then_canary=Canary(steps=(0.3, 0.6), bake_seconds=1, minimum_requests=3)),
    BlueGreen(bake_seconds=1, minimum_requests=3, keep_seconds=10),
    Split(share=0.4, duration_seconds=20, minimum_requests=5),
    Split(0.4, 20, 5, on_end=SplitEnd.KEEP_OLD),
    Split(0.4, 20, 5, on_end=SplitEnd.PROMOTE_UNLESS_WORSE),
)
JUDGED = tuple(state for state in RolloutState if state.is_judged)
INTERFACE = Interface(128, "", "", "")


class ServingWorld(RuleBasedStateMachine):
    """One model's rollouts, looked at as the controller does: all of them, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.strategy: Strategy = STRATEGIES[1]
        self.rollouts: list[Rollout] = []
        self.serving = 0
        self.ready: set[int] = set()
        self.broken: set[int] = set()
        self.traffic: dict[int, Traffic] = {}
        self.held: set[int] = set()
        self.away: set[int] = set()
        self.reversed: set[int] = set()

    @precondition(lambda self: len(self.unended()) < 3)
    @rule()
    def a_version_is_registered(self) -> None:
        number = len(self.rollouts) + 1
        made = Rollout(
            tenant="acme",
            id=f"rollout-{number}",
            deployment="deployment-1",
            model="demo",
            to_version=number,
            create_time=self.now,
            update_time=self.now,
            traceparent="",
        )
        self.rollouts.append(made)

    @rule(seconds=st.sampled_from([0.5, 1.5, 4.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: not self.unended(RolloutState.LOADING))
    @rule(strategy=st.sampled_from(STRATEGIES))
    def the_deployment_is_changed(self, strategy: Strategy) -> None:
        self.strategy = strategy

    @precondition(lambda self: self.unended(RolloutState.LOADING))
    @rule(loads=st.sampled_from([True, True, True, False]))
    def triton_loads(self, loads: bool) -> None:
        for found in self.unended(RolloutState.LOADING):
            (self.ready if loads else self.broken).add(found.to_version)
        self.a_look()

    @precondition(lambda self: self.unended(*JUDGED))
    @rule(
        requests=st.sampled_from([1, 2, 5, 10, 30]),
        fail_one_in=st.sampled_from([1, 2, 10, 1000, 1000]),
        seconds=st.sampled_from([0.0, 4.0, 30.0]),
    )
    def the_new_one_is_asked(self, requests: int, fail_one_in: int, seconds: float) -> None:
        for found in self.unended(*JUDGED):
            self.count(found.to_version, requests, requests // fail_one_in)
        self.now += timedelta(seconds=seconds)
        self.a_look()

    @precondition(lambda self: self.unended())
    @rule(data=st.data())
    def one_is_paused_or_resumed(self, data: st.DataObject) -> None:
        found = data.draw(st.sampled_from(self.unended()))
        self.change(found, paused=not found.paused)

    @precondition(lambda self: self.unended())
    @rule(data=st.data())
    def one_is_promoted_by_hand(self, data: st.DataObject) -> None:
        found = data.draw(st.sampled_from(self.unended()))
        if found.can_be_promoted:
            self.settle(found)

    @precondition(lambda self: self.unended())
    @rule(data=st.data())
    def one_is_reversed_by_hand(self, data: st.DataObject) -> None:
        self.reverse(data.draw(st.sampled_from(self.unended())))

    @precondition(lambda self: self.ready)
    @rule()
    def triton_restarts_empty(self) -> None:
        """What was loaded does not answer until it is loaded again."""
        self.away, self.ready = self.away | self.ready, set()

    @precondition(lambda self: self.away)
    @rule(loads=st.sampled_from([True, True, False]))
    def triton_loads_again(self, loads: bool) -> None:
        back, self.away = self.away, set()
        self.ready |= back if loads else back & {self.serving}
        self.broken |= set() if loads else back - {self.serving}

    @precondition(lambda self: self.serving)
    @rule()
    def the_serving_one_is_quarantined(self) -> None:
        self.ready.discard(self.serving)
        self.away.discard(self.serving)
        self.serving = 0

    @precondition(lambda self: self.serving)
    @rule(requests=st.integers(0, 30), fail_one_in=st.sampled_from([2, 1000]))
    def the_old_one_is_asked(self, requests: int, fail_one_in: int) -> None:
        self.count(self.serving, requests, requests // fail_one_in)

    @precondition(lambda self: self.rollouts)
    @rule(data=st.data())
    def one_is_held_or_let_go(self, data: st.DataObject) -> None:
        self.held ^= {data.draw(st.integers(1, len(self.rollouts)))}

    @precondition(lambda self: self.unended())
    @rule()
    def a_look(self) -> None:
        snapshot = self.unended()
        for found in snapshot:
            self.act(found, self.observe(found, snapshot))

    def observe(self, found: Rollout, snapshot: list[Rollout]) -> rules.Observed:
        others = [other for other in snapshot if other.id != found.id]
        return rules.Observed(
            now=self.now,
            newer_waits=any(
                o.state == RolloutState.PENDING and o.to_version > found.to_version for o in others
            ),
            another_active=any(o.state.is_active for o in others),
            is_ready=found.to_version in self.ready,
            load_error="it broke" if found.to_version in self.broken else "",
            alone=self.serving == 0,
            new=self.traffic.get(found.to_version, Traffic()),
            old=self.traffic.get(found.from_version, Traffic()),
        )

    def act(self, found: Rollout, observed: rules.Observed) -> None:
        action = rules.next_action(found, self.strategy, observed)
        if isinstance(action, rules.Supersede):
            assert found.state == RolloutState.PENDING
            assert observed.newer_waits
            self.become(found, RolloutState.SUPERSEDED)
        elif isinstance(action, rules.Load):
            assert not found.paused
            self.become(found, RolloutState.LOADING, from_version=self.serving)
        elif isinstance(action, rules.EnterStep):
            self.assert_earned(found, observed)
            before = {"new_before": observed.new, "old_before": observed.old}
            shares = {"traffic_share": action.share, "mirror_share": action.mirror_share}
            self.become(found, action.state, step=action.step, **shares, **before)
        elif isinstance(action, rules.Settle):
            self.assert_earned(found, observed)
            self.settle(found)
        elif isinstance(action, rules.Reverse):
            assert action.reason
            self.reverse(found)
        elif observed.is_ready and found.state == RolloutState.LOADING:
            self.change(found, ready_time=found.ready_time or self.now)

    def settle(self, found: Rollout) -> None:
        self.become(found, RolloutState.SETTLED, traffic_share=1.0, mirror_share=0.0)
        self.serving = found.to_version

    def reverse(self, found: Rollout) -> None:
        self.become(found, RolloutState.REVERSED, traffic_share=0.0, mirror_share=0.0)
        self.reversed.add(found.to_version)

    def assert_earned(self, found: Rollout, observed: rules.Observed) -> None:
        """It goes forward on an answer at least, and out of a step on enough good ones."""
        assert found.to_version in self.ready - self.broken
        assert not found.paused
        stage = rules.stage_of(self.strategy, found.state)
        if stage is None:  # its deployment says otherwise by now
            return
        new, old = rules.step_traffic(found, observed)
        assert new.failure_rate <= old.failure_rate + stage.maximum_error_rate_increase + 1e-9
        if observed.alone:  # nothing else answers
            return
        assert new.requests >= stage.minimum_requests
        assert self.now - found.step_time >= timedelta(seconds=stage.seconds)

    def change(self, found: Rollout, **changes: object) -> None:
        self.rollouts[self.rollouts.index(found)] = replace(found, **changes)

    def become(self, found: Rollout, state: RolloutState, **changes: object) -> None:
        at = self.rollouts.index(found)
        self.rollouts[at] = replace(found, state=state, step_time=self.now, **changes)

    def count(self, version: int, requests: int, failures: int) -> None:
        before = self.traffic.get(version, Traffic())
        self.traffic[version] = Traffic(before.requests + requests, before.failures + failures)

    def unended(self, *states: RolloutState) -> list[Rollout]:
        found = [r for r in self.rollouts if not r.state.has_ended]
        return [r for r in found if r.state in states] if states else found

    @invariant()
    def at_most_one_is_active(self) -> None:
        assert len([r for r in self.rollouts if r.state.is_active]) <= 1

    @invariant()
    def shares_are_of_versions_that_answer_and_add_up(self) -> None:
        route = self.route()
        judged = self.unended(*JUDGED)
        share = {t.version: t.share for t in route.targets if t.share}
        assert set(share) <= {self.serving, *(r.to_version for r in judged)}
        assert {t.version for t in route.targets} <= self.ready
        assert self.held & self.ready <= {t.version for t in route.targets}
        assert all(0 < part <= 1 for part in share.values())
        if share:
            assert abs(sum(share.values()) - 1) < 1e-6
        answers = {r.to_version for r in judged} & self.ready
        if self.serving in self.ready:
            wanted = {r.to_version: r.traffic_share for r in judged if r.to_version in answers}
            wanted[self.serving] = round(1 - sum(wanted.values()), 6)
            given = {number: part for number, part in wanted.items() if part}
            assert {number: round(part, 6) for number, part in share.items()} == given

    @invariant()
    def what_was_reversed_gets_nothing(self) -> None:
        for target in self.route().targets:
            if target.version in self.reversed - {self.serving}:
                assert target.version in self.held
                assert not target.share
                assert not target.mirror_share

    @invariant()
    def copies_and_users_go_where_the_rollout_says(self) -> None:
        route = self.route()
        judged = [r for r in self.unended(*JUDGED) if r.to_version in self.ready]
        mirrored = {t.version: t.mirror_share for t in route.targets if t.mirror_share}
        assert mirrored == {r.to_version: r.mirror_share for r in judged if r.mirror_share}
        assert bool(route.split) == any(r.state == RolloutState.SPLIT for r in judged)
        for found in judged:
            is_shadow = found.state == RolloutState.SHADOW
            assert (found.mirror_share > 0) == is_shadow
            has_share = found.state not in (RolloutState.SHADOW, RolloutState.STANDBY)
            assert (found.traffic_share > 0) == has_share

    @invariant()
    def the_old_version_stays_loaded_until_the_end(self) -> None:
        """So the way back is as short as one write of the routes."""
        if self.serving in self.ready:
            assert self.serving in {t.version for t in self.route().targets}

    def route(self) -> Route:
        return route_of_model(
            Model("acme", "demo", START, serving_version=self.serving),
            tuple(self.unended()),
            tuple(version(r.to_version) for r in self.rollouts),
            held=self.held,
            steps={},
            answering=dict.fromkeys(self.ready, ("t:1",)),
        )

    def teardown(self) -> None:
        """Whatever has happened: when nothing more comes and nobody pauses, every rollout ends."""
        for found in self.unended():
            self.change(found, paused=False)
        for _ in range(10 * (len(self.rollouts) + 1)):
            if not self.unended():
                return
            self.now += timedelta(seconds=400)
            self.a_look()
        assert not self.unended()


def version(number: int) -> Version:
    return Version(
        tenant="acme",
        model="demo",
        number=number,
        target="TARGET_OPENVINO_INT8",
        artifact=Content("file:///a", "sha256:a", 1),
        checkpoint={},
        measurements={},
        compression=f"c-{number}",
        create_time=START,
        traceparent="",
        interface=INTERFACE,
    )


TestServingWorld = ServingWorld.TestCase
TestServingWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
