"""The rollout's next action, from what is desired and what is observed. Pure.

The same inputs give the same action, so that whoever takes a rollout over after a crash goes on
where it stood. No data is never a pass: a step ends well only when the new version has answered
``minimum_requests`` of it. Whether a step went well, ``judged`` says, of every strategy.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from millrace_registry.analysis import (
    Judgement,
    Verdict,
    are_prompts_missing,
    judge,
    judge_quality,
    policy_of,
)
from millrace_registry.domain import Rollout, RolloutState
from millrace_registry.evidence import Evidence
from millrace_registry.strategies import (
    Analysis,
    BlueGreen,
    Canary,
    Immediate,
    Shadow,
    Split,
    SplitEnd,
    Stage,
    Strategy,
    kind_of,
)
from millrace_registry.traffic import Traffic

LOADING_LIMIT = timedelta(seconds=180)
SILENCE_LIMIT = timedelta(seconds=120)
_NO_TRAFFIC = Traffic()
_NO_EVIDENCE = Evidence()
_AS_EVER = Analysis()
_OF_TWO_STEPS = ("shadow", "blue_green")
# Of as many questions as a step has to be answered: in all, and of the old version at once.
_MOST_ROUNDS, _ROUNDS_BESIDE = 20.0, 4


@dataclass(frozen=True)
class Observed:
    """What is known when a rollout is looked at.

    Attributes:
        newer_waits: a rollout to a newer version of the model is PENDING.
        another_active: another rollout of the model is LOADING or CANARY.
        is_ready: the new version has answered a question on Triton.
        load_error: why it could not be loaded; empty otherwise.
        no_room: why there is no memory for the new version now; empty: there is.
        mismatch: how what it answers differs from what its artifact said; empty otherwise.
        new, old: traffic of the new and the old version, since the gateways started.
        watched_since: since when Triton has been looked at without a break; silence from before
            says nothing of the version. None: all the time.
        alone: no other version of the model serves.
        serves: it serves already; another was quarantined, and it took that one's place.
        old_is_gone: the old version cannot be asked any more.
        evidence: what the present step is judged by.
        analysis: how, as the deployment says.
    """

    now: datetime
    newer_waits: bool = False
    another_active: bool = False
    is_ready: bool = False
    load_error: str = ""
    no_room: str = ""
    mismatch: str = ""
    new: Traffic = _NO_TRAFFIC
    old: Traffic = _NO_TRAFFIC
    watched_since: datetime | None = None
    alone: bool = False
    serves: bool = False
    old_is_gone: bool = False
    evidence: Evidence = _NO_EVIDENCE
    analysis: Analysis = _AS_EVER


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
    """Give the new version ``share`` of the requests, and copies of ``mirror_share`` of them."""

    step: int
    share: float
    state: RolloutState = RolloutState.CANARY
    mirror_share: float = 0.0


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
    """What to do about a rollout that has not ended. A paused one only ever goes back."""
    assert not rollout.state.has_ended
    action = _wanted(rollout, strategy, observed)
    is_forward = isinstance(action, Load | EnterStep | Settle)
    return Wait() if rollout.paused and is_forward else action


def _wanted(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    if rollout.state == RolloutState.PENDING:
        return _when_pending(observed)
    if observed.mismatch:
        return Reverse(observed.mismatch)
    if rollout.state == RolloutState.LOADING:
        return _when_loading(rollout, strategy, observed)
    if observed.load_error:
        return Reverse(f"it went out of service: {observed.load_error}")
    stage = stage_of(strategy, rollout.state)
    if stage is None:
        return _when_strategy_changed(rollout, strategy, observed)
    return _when_judged(rollout, strategy, stage, observed)


def stage_of(strategy: Strategy, state: RolloutState) -> Stage | None:
    """What a rollout in ``state`` has to show; None: the strategy has no such state."""
    kind = kind_of(strategy)
    match strategy, state:
        case Canary(), RolloutState.CANARY:
            return _stage(kind, strategy, strategy.bake_seconds, len(strategy.steps))
        case Shadow(), RolloutState.SHADOW:
            return _stage(kind, strategy, strategy.bake_seconds)
        case Shadow(then_canary=Canary() as canary), RolloutState.CANARY:
            return _stage(kind, canary, canary.bake_seconds, len(canary.steps))
        case BlueGreen(), RolloutState.STANDBY:
            return _stage(kind, strategy, strategy.bake_seconds)
        case BlueGreen(), RolloutState.SWITCHED:
            return _stage(kind, strategy, strategy.keep_seconds)
        case Split(), RolloutState.SPLIT:
            return _stage(kind, strategy, strategy.duration_seconds)
        case _:
            return None


def judged(rollout: Rollout, stage: Stage, observed: Observed) -> Judgement:
    """Whether the present step went well (GOOD), badly (BAD), or cannot be said yet (WAIT).

    What cannot be said for too long is BAD: no data is never a pass.
    """
    new, old = step_traffic(rollout, observed)
    known = observed.evidence
    if observed.old_is_gone:  # then it is to be as one that never failed, and is asked nothing
        old = Traffic(requests=max(old.requests, new.requests))
        known = replace(known, pairs_expected=0)
    evidence = replace(
        known,
        new=replace(known.new, requests=new.requests, failures=new.failures),
        old=replace(known.old, requests=old.requests, failures=old.failures),
    )
    policy = policy_of(observed.analysis, stage)
    steps = stage.steps + (stage.strategy in _OF_TWO_STEPS)
    judgement = judge(evidence, policy, steps)
    silence = _watched(rollout, observed)
    is_late = silence > SILENCE_LIMIT + timedelta(seconds=stage.seconds)
    if judgement.verdict == Verdict.WAIT and is_late:
        waited = f"after {silence.total_seconds():.0f} s, and no data is never a pass"
        return Judgement(Verdict.BAD, (*judgement.reasons, waited))
    return judgement


def step_traffic(rollout: Rollout, observed: Observed) -> tuple[Traffic, Traffic]:
    """(new, old) traffic since the present step began."""
    return observed.new.since(rollout.new_before), observed.old.since(rollout.old_before)


def questions_missing(rollout: Rollout, stage: Stage, observed: Observed) -> tuple[int, int]:
    """How many questions the (new, old) version should be asked now, beside its traffic.

    Either has to give the step's minimum of answers, spread over the step, and as many again and
    again while that does not decide. The old one is asked at once where traffic went to the new
    one alone: without it nothing can be told.
    """
    elapsed = _elapsed(rollout, observed).total_seconds()
    least = stage.minimum_requests
    due = int(least * min(_MOST_ROUNDS, elapsed / max(stage.seconds, 0.1)))
    new, old = step_traffic(rollout, observed)
    beside = min(new.requests, _ROUNDS_BESIDE * least)
    return min(least, due - new.requests), min(least, max(due, beside) - old.requests)


def _when_pending(observed: Observed) -> Action:
    if observed.serves:
        return Settle("it serves already")
    if observed.newer_waits:
        return Supersede()
    return Wait() if observed.another_active or observed.no_room else Load()


def _when_loading(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    if observed.load_error:
        return Reverse(f"it could not be loaded: {observed.load_error}")
    if observed.is_ready:
        if rollout.from_version == 0:
            return Settle("it answered, and there is no version before it to compare with")
        return _when_ready(rollout, strategy, observed)
    if _watched(rollout, observed) > LOADING_LIMIT:
        return Reverse(f"it did not answer within {LOADING_LIMIT.total_seconds():g} s of loading")
    return Wait()


def _when_ready(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    """What is worse by the golden prompts gets no traffic: they are scored before its first step.

    Should that take too long (the old version may be busy, or silent), it is judged in its steps
    as by the rest.
    """
    first = _first_step(strategy)
    is_compared = not observed.alone and not observed.old_is_gone
    if isinstance(first, Settle) or not is_compared:
        return first
    judgement = judge_quality(observed.evidence, policy_of(observed.analysis, Stage()))
    if judgement.verdict == Verdict.BAD:
        return Reverse("; ".join(judgement.reasons))
    waited = observed.now - (rollout.ready_time or observed.now)
    is_late = waited > SILENCE_LIMIT
    return Wait() if are_prompts_missing(observed.evidence) and not is_late else first


def _first_step(strategy: Strategy) -> EnterStep | Settle:
    """How a strategy begins, with a version that answers."""
    match strategy:
        case Immediate():
            return Settle("it answered; the strategy is immediate")
        case Canary():
            return EnterStep(0, strategy.steps[0])
        case Shadow():
            return EnterStep(0, 0.0, RolloutState.SHADOW, strategy.share)
        case BlueGreen():
            return EnterStep(0, 0.0, RolloutState.STANDBY)
        case Split():
            return EnterStep(0, strategy.share, RolloutState.SPLIT)


def _when_strategy_changed(rollout: Rollout, strategy: Strategy, observed: Observed) -> Action:
    """The deployment was changed meanwhile: the rollout begins again by its new strategy."""
    if not observed.is_ready:
        return Wait()
    kind = kind_of(strategy)
    if rollout.state == RolloutState.SWITCHED or isinstance(strategy, Immediate):
        # What has all the traffic does not give it back to be asked for less.
        return Settle(f"it answered; the strategy is {kind} now")
    return _first_step(strategy)


def _when_judged(rollout: Rollout, strategy: Strategy, stage: Stage, observed: Observed) -> Action:
    judgement = judged(rollout, stage, observed)
    if judgement.verdict == Verdict.BAD:
        return Reverse("; ".join(judgement.reasons))
    if rollout.paused or not observed.is_ready:  # Triton may have restarted empty
        return Wait()
    if observed.alone:
        return Settle("it answers, and no other version serves any more")
    is_early = _elapsed(rollout, observed) < timedelta(seconds=stage.seconds)
    if judgement.verdict == Verdict.WAIT or is_early:
        return Wait()
    return _following(rollout, strategy, observed, "; ".join(judgement.reasons))


def _following(rollout: Rollout, strategy: Strategy, observed: Observed, figures: str) -> Action:
    """What follows a step that went well."""
    match strategy, rollout.state:
        case Shadow(then_canary=Canary() as canary), RolloutState.SHADOW:
            return EnterStep(0, canary.steps[0])
        case (Canary() as canary, _) | (Shadow(then_canary=Canary() as canary), _):
            following = rollout.step + 1
            if following < len(canary.steps):
                return EnterStep(following, canary.steps[following])
            return Settle(figures)
        case BlueGreen(), RolloutState.STANDBY:
            return EnterStep(1, 1.0, RolloutState.SWITCHED)
        case Split(on_end=on_end), _:
            return _end_of_split(on_end, *step_traffic(rollout, observed))
        case _:
            return Settle(figures)


def _end_of_split(on_end: SplitEnd, new: Traffic, old: Traffic) -> Settle | Reverse:
    figures = f"new: {_figures(new)}; old: {_figures(old)}"
    if on_end == SplitEnd.KEEP_OLD:
        return Reverse(f"the test has ended, and on_end keeps the old version; {figures}")
    if on_end == SplitEnd.PROMOTE_UNLESS_WORSE:
        return Settle(f"it was not worse; {figures}")
    if is_better(new, old):
        return Settle(f"it was better; {figures}")
    return Reverse(f"it was not better; {figures}")


def is_better(new: Traffic, old: Traffic) -> bool:
    """Fewer of its requests failed; where that is equal, its answers began sooner."""
    if new.failure_rate != old.failure_rate:
        return new.failure_rate < old.failure_rate
    is_timed = new.timed > 0 and old.timed > 0
    return is_timed and new.mean_first_token_seconds < old.mean_first_token_seconds


def _figures(traffic: Traffic) -> str:
    failed = f"{traffic.failures} of {traffic.requests} requests failed"
    if not traffic.timed:
        return failed
    return f"{failed}, first token after {traffic.mean_first_token_seconds * 1000:.3g} ms"


def _stage(
    kind: str, limits: Canary | Shadow | BlueGreen | Split, seconds: float, steps: int = 1
) -> Stage:
    increase = limits.maximum_error_rate_increase
    return Stage(kind, seconds, limits.minimum_requests, increase, steps)


def _elapsed(rollout: Rollout, observed: Observed) -> timedelta:
    return observed.now - (rollout.step_time or rollout.update_time)


def _watched(rollout: Rollout, observed: Observed) -> timedelta:
    """How long the version has had to show itself."""
    elapsed = _elapsed(rollout, observed)
    if observed.watched_since is None:
        return elapsed
    return min(elapsed, observed.now - observed.watched_since)
