"""The rules drive a model of the world: versions keep coming, fail, answer, and take over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millrace_registry import rollout as rules
from millrace_registry.domain import (
    Canary,
    Content,
    Immediate,
    Interface,
    Model,
    Rollout,
    RolloutState,
    Strategy,
    Traffic,
    Version,
)
from millrace_registry.routing import route_of_model

START = datetime(2030, 1, 1, tzinfo=UTC)
STRATEGIES: tuple[Strategy, ...] = (
    Immediate(),
    Canary(steps=(0.25,), bake_seconds=3, minimum_requests=8),
    Canary(steps=(0.1, 0.5, 0.9), bake_seconds=1, minimum_requests=3),
)
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

    @precondition(lambda self: self.unended(RolloutState.CANARY))
    @rule(
        requests=st.sampled_from([1, 2, 5, 10, 30]),
        fail_one_in=st.sampled_from([1, 2, 10, 1000, 1000]),
        seconds=st.sampled_from([0.0, 4.0]),
    )
    def the_new_one_is_asked(self, requests: int, fail_one_in: int, seconds: float) -> None:
        for found in self.unended(RolloutState.CANARY):
            self.count(found.to_version, requests, requests // fail_one_in)
        self.now += timedelta(seconds=seconds)
        self.a_look()

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
            self.become(found, RolloutState.LOADING, from_version=self.serving)
        elif isinstance(action, rules.EnterStep):
            self.assert_earned(found, observed)
            before = {"new_before": observed.new, "old_before": observed.old}
            entered = {"step": action.step, "traffic_share": action.share, **before}
            self.become(found, RolloutState.CANARY, **entered)
        elif isinstance(action, rules.Settle):
            self.assert_earned(found, observed)
            self.become(found, RolloutState.SETTLED, traffic_share=1.0)
            self.serving = found.to_version
        elif isinstance(action, rules.Reverse):
            assert action.reason
            self.become(found, RolloutState.REVERSED, traffic_share=0.0)

    def assert_earned(self, found: Rollout, observed: rules.Observed) -> None:
        """It goes forward on an answer at least, and out of a canary's step on enough of them."""
        assert found.to_version in self.ready - self.broken
        if found.state != RolloutState.CANARY or isinstance(self.strategy, Immediate):
            return
        new, old = rules.step_traffic(found, observed)
        assert new.requests >= self.strategy.minimum_requests
        old_rate = old.failures / old.requests if old.requests else 0.0
        limit = old_rate + self.strategy.maximum_error_rate_increase
        assert new.failures / new.requests <= limit + 1e-9

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
    def only_the_serving_one_and_a_canary_have_a_share(self) -> None:
        versions = tuple(version(r.to_version) for r in self.rollouts)
        model = Model("acme", "demo", START, serving_version=self.serving)
        route = route_of_model(
            model,
            tuple(self.unended()),
            versions,
            held=self.held,
            steps={},
            answering=self.ready,
            endpoint="t:1",
        )
        canary = {r.to_version for r in self.unended(RolloutState.CANARY)}
        share = {t.version: t.share for t in route.targets if t.share}
        assert set(share) <= {self.serving, *canary}
        assert {t.version for t in route.targets} <= self.ready & {*share, *self.held}
        assert self.held & self.ready <= {t.version for t in route.targets}
        assert all(0 < part <= 1 for part in share.values())
        if share:
            assert abs(sum(share.values()) - 1) < 1e-6
        if self.serving:
            wanted = {r.to_version: r.traffic_share for r in self.unended(RolloutState.CANARY)}
            wanted[self.serving] = round(1 - sum(wanted.values()), 6)
            assert {number: round(part, 6) for number, part in share.items()} == wanted

    def teardown(self) -> None:
        """Whatever has happened: when nothing more comes, every rollout ends."""
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
