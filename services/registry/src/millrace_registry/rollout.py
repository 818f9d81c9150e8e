"""The rollout's next action, from what is desired and what is observed. Pure.

The same inputs give the same action, so that whoever takes a rollout over after a crash goes on
where it stood. No data is never a pass: a step ends well only when the new version has answered
``minimum_requests`` of it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from millrace_registry.domain import Canary, Immediate, Rollout, RolloutState, Strategy, Traffic

LOADING_LIMIT = timedelta(seconds=180)
SILENCE_LIMIT = timedelta(seconds=120)
_NO_TRAFFIC = Traffic()


@dataclass(frozen=True)
class Observed:
    """What is known when a rollout is looked at.

    Attributes:
        newer_waits: a rollout to a newer version of the model is PENDING.
        another_active: another rollout of the model is LOADING or CANARY.
        is_ready: the new version has answered a question on Triton.
        load_error: why it could not be loaded; empty otherwise.
        mismatch: how what it answers differs from what its artifact said; empty otherwise.
        new, old: traffic of the new and the old version, since the gateways started.
        watched_since: since when Triton has been looked at without a break; silence from before
            says nothing of the version. None: all the time.
    """

    now: datetime
    newer_waits: bool = False
    another_active: bool = False
    is_ready: bool = False
    load_error: str = ""
    mismatch: str = ""
    new: Traffic = _NO_TRAFFIC
    old: Traffic = _NO_TRAFFIC
    watched_since: datetime | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet."""


@dataclass(frozen=True)
class Supersede:
    """A newer version has come before this one had its turn."""


@dataclass(frozen=True)
class Load:
    """Have Triton load the new version."""


@dataclass(frozen=True)
class EnterStep:
    """Give the new version ``share`` of the requests."""

    step: int
    share: float


@dataclass(frozen=True)
class Settle:
    """Give it all of them."""

    reason: str


@dataclass(frozen=True)
class Reverse:
    """Take it out of service again."""

    reason: str


Action = Wait | Supersede | Load | EnterStep | Settle | Reverse


def next_action(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    """What to do about a rollout that has not ended."""
    assert not rollout.state.has_ended
    if rollout.state == RolloutState.PENDING:
        return _when_pending(observed)
    if observed.mismatch:
        return Reverse(observed.mismatch)
    if rollout.state == RolloutState.LOADING:
        return _when_loading(rollout, strategy, observed)
    if observed.load_error:
        return Reverse(f"it went out of service: {observed.load_error}")
    if isinstance(strategy, Immediate):  # the deployment was changed meanwhile
        return Settle("it answered; the strategy is immediate now")
    return _when_in_canary(rollout, strategy, observed)


def step_traffic(rollout: Rollout, observed: Observed) -> tuple[Traffic, Traffic]:
    """(new, old) traffic since the present step began."""
    return observed.new.since(rollout.new_before), observed.old.since(rollout.old_before)


def _when_pending(observed: Observed) -> Action:
    if observed.newer_waits:
        return Supersede()
    return Wait() if observed.another_active else Load()


def _when_loading(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    if observed.load_error:
        return Reverse(f"it could not be loaded: {observed.load_error}")
    if observed.is_ready:
        if isinstance(strategy, Immediate):
            return Settle("it answered; the strategy is immediate")
        if rollout.from_version == 0:
            return Settle("it answered, and there is no version before it to compare with")
        return EnterStep(0, strategy.steps[0])
    if _watched(rollout, observed) > LOADING_LIMIT:
        return Reverse(f"it did not answer within {LOADING_LIMIT.total_seconds():g} s of loading")
    return Wait()


def _when_in_canary(rollout: Rollout, strategy: Canary, observed: Observed) -> Action:
    new, old = step_traffic(rollout, observed)
    elapsed = _elapsed(rollout, observed)
    if new.requests < strategy.minimum_requests:
        silence = _watched(rollout, observed)
        if silence > SILENCE_LIMIT + timedelta(seconds=strategy.bake_seconds):
            return Reverse(
                f"{new.requests} answers in {silence.total_seconds():.0f} s; "
                f"{strategy.minimum_requests} are needed, and no data is never a pass"
            )
        return Wait()
    if _rate(new) > _rate(old) + strategy.maximum_error_rate_increase:
        return Reverse(
            f"{new.failures} of {new.requests} requests failed "
            f"({_rate(new):.1%}; before it {_rate(old):.1%})"
        )
    if elapsed < timedelta(seconds=strategy.bake_seconds):
        return Wait()
    following = rollout.step + 1
    if following < len(strategy.steps):
        return EnterStep(following, strategy.steps[following])
    return Settle(f"{new.requests - new.failures} of {new.requests} requests answered")


def _rate(traffic: Traffic) -> float:
    return traffic.failures / traffic.requests if traffic.requests else 0.0


def _elapsed(rollout: Rollout, observed: Observed) -> timedelta:
    return observed.now - (rollout.step_time or rollout.update_time)


def _watched(rollout: Rollout, observed: Observed) -> timedelta:
    """How long the version has had to show itself."""
    elapsed = _elapsed(rollout, observed)
    if observed.watched_since is None:
        return elapsed
    return min(elapsed, observed.now - observed.watched_since)
