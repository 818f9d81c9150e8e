"""Whether a new version is as good as the old one, from what both answered at the same time. Pure.

The evidence is looked at twice a second, and the first look that says BAD ends the rollout. So
every test is one that may be looked at at any time (``sequential.py``). Of all rollouts whose new
version is as good as the old one, at most ``AnalysisPolicy.false_alarm_rate`` (1 %) are called BAD
at any time, for any reason that is tested: it is split evenly among the five signals (errors, first
token, further tokens, answers that do not end, quality), then among the steps, and quality's, whose
prompts are asked once in a rollout, among its kinds of prompts.
Not tested but ruled: answers of the new version that cannot be scored where the old one's can
(NaN, nothing at all) are BAD from ``unscored_limit`` prompts on, questions with them that fail,
to be asked again, from ``unanswered_limit`` times on, and so is a mean loss of ``broken_loss`` over
four prompts, which are too few to test anything by.

No data is never GOOD: every signal that is asked for needs its minimum, and what is there of the
others is judged all the same. What looks worse than its margin, but could still be chance, is
waited for, as long as there is more to come.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from millrace_registry import sequential
from millrace_registry.domain import Version
from millrace_registry.evidence import LATENCY_BOUNDS, Answers, Evidence, Latencies
from millrace_registry.strategies import Analysis, Stage

_SIGNALS = 5
_FEW = 4
# Nats a token that a version of a tuning job may lose. To learn one thing costs others, and its
# last epochs its own held-out examples: the job's card says so. What is broken costs more.
_TUNED_LOSS = 0.5
# Evidence that is no alarm, but not waved through either; of as good a version it is seen by
# each signal in one rollout of twenty at most.
_SUSPICIOUS = math.log(20)
# Timed answers below which whatever speaks against the new version at all is waited for: twice as
# slow shows in 20 answers of a quiet machine, and in some 60 of a busy one.
_TELLING_ANSWERS = 60
# The fields of a deployment's ``Analysis``.
_FIELDS = {
    "false_alarm_rate": "false_alarm_rate",
    "maximum_latency_increase": "max_latency_increase",
    "maximum_cut_increase": "max_cut_increase",
    "maximum_score_decrease": "max_quality_loss",
    "minimum_pairs": "minimum_pairs",
    "minimum_timed_answers": "minimum_latencies",
}
_ROOM = 10.0
_BIN = math.log(LATENCY_BOUNDS[1] / LATENCY_BOUNDS[0])


class Verdict(StrEnum):
    WAIT = "WAIT"
    GOOD = "GOOD"
    BAD = "BAD"


@dataclass(frozen=True)
class AnalysisPolicy:
    """What a new version may be worse by, and how sure one must be (``service.proto``: Analysis).

    Attributes:
        false_alarm_rate: of rollouts of a version that is as good as the old one, 0…1.
        minimum_answers: of either version, in a step, before it can be called GOOD.
        minimum_latencies: as ``minimum_answers``, of answers to clients, which alone are timed.
        minimum_pairs: prompts that both versions were scored on, beside those that there will be.
        max_error_rate_increase: failed share of the new version's requests above the old one's.
        max_latency_increase: relative; 0.2 is a fifth slower, at the median. None does not judge.
        max_cut_increase: share of whole answers that were cut at their largest length, above the
            old one's: a version that cannot end. None does not judge.
        max_quality_loss: mean of (old less new) of the pairs' scores, in the scores' unit.
        quality_bound: a larger difference of one pair counts as this one.
        unscored_limit: prompts that only the new version could not be scored on.
        unanswered_limit: looks at which it did not answer a prompt, more than of the old one. As
            many as it takes to give up so many prompts; a version that fails now and then would
            have each prompt answered in the end.
        broken_loss: as ``max_quality_loss``; from four prompts on, no test is needed.
    """

    false_alarm_rate: float = 0.01
    minimum_answers: int = 20
    minimum_latencies: int = 0
    minimum_pairs: int = 0
    max_error_rate_increase: float = 0.05
    max_latency_increase: float | None = 0.2
    max_cut_increase: float | None = 0.3
    max_quality_loss: float = 0.05
    quality_bound: float = 0.5
    unscored_limit: int = 2
    unanswered_limit: int = 6
    broken_loss: float = 2.0


def policy_of(said: Analysis, stage: Stage) -> AnalysisPolicy:
    """What a deployment, and a step of its strategy, ask for; what they do not say is as above."""
    given = {_FIELDS[name]: value for name, value in asdict(said).items() if value is not None}
    policy = AnalysisPolicy(
        minimum_answers=stage.minimum_requests,
        max_error_rate_increase=stage.maximum_error_rate_increase,
        **given,
    )
    # Next to the margin there must be room for what is beyond it.
    bound = max(policy.quality_bound, _ROOM * policy.max_quality_loss)
    return replace(policy, quality_bound=bound)


def asked_of(said: Analysis, version: Version | None) -> Analysis:
    """What a deployment asks of a version; one of a tuning job has a default of its own."""
    is_tuned = version is not None and "/jobs/" in version.checkpoint_name
    if not is_tuned or said.maximum_score_decrease is not None:
        return said
    return replace(said, maximum_score_decrease=_TUNED_LOSS)


@dataclass(frozen=True)
class Judgement:
    """``reasons``: one sentence a signal, with the figures; of those alone that decided."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judge(evidence: Evidence, policy: AnalysisPolicy, steps: int = 1) -> Judgement:
    """What the evidence of one of a rollout's ``steps`` says.

    One that is BAD decides; without one, whatever is to be waited for.
    """
    return _decided(tuple(_findings(evidence, policy, steps)))


def judge_quality(evidence: Evidence, policy: AnalysisPolicy) -> Judgement:
    """What the golden prompts alone say: all that there is before a version gets traffic."""
    return _decided(tuple(_quality(evidence, policy)))


def are_prompts_missing(evidence: Evidence) -> bool:
    """Whether golden prompts are still to be scored by both, or it is not known how many."""
    expected = evidence.pairs_expected
    return expected is None or len({pair.prompt for pair in evidence.pairs}) < expected


def _decided(found: Sequence["Finding"]) -> Judgement:
    for verdict in (Verdict.BAD, Verdict.WAIT):
        reasons = tuple(reason for each, reason in found if each == verdict)
        if reasons:
            return Judgement(verdict, reasons)
    return Judgement(Verdict.GOOD, tuple(reason for _, reason in found))


Finding = tuple[Verdict, str]


def _findings(evidence: Evidence, policy: AnalysisPolicy, steps: int) -> Iterator[Finding]:
    new, old = evidence.new, evidence.old
    alarm = math.log(_SIGNALS * steps / policy.false_alarm_rate)
    yield _errors(new, old, policy, alarm)
    yield from _latencies(new, old, policy, alarm)
    yield from _cuts(new, old, policy, alarm)
    yield from _quality(evidence, policy)


def _errors(new: Answers, old: Answers, policy: AnalysisPolicy, alarm: float) -> Finding:
    margin, least = policy.max_error_rate_increase, policy.minimum_answers
    sure = sequential.more_failures(new.failures, new.requests, old.failures, old.requests, margin)
    figures = (
        f"{_share(new.failures, new.requests)} of its requests failed, "
        f"of the old version's {_share(old.failures, old.requests)}"
    )
    if sure >= alarm:
        return Verdict.BAD, figures
    if min(new.requests, old.requests) < least:
        return Verdict.WAIT, f"{figures}; {least} requests of either are needed"
    return _unless_suspicious(_rate(new) - _rate(old) > margin, figures)


def _latencies(
    new: Answers, old: Answers, policy: AnalysisPolicy, alarm: float
) -> Iterator[Finding]:
    margin, least = policy.max_latency_increase, policy.minimum_latencies
    if margin is None:
        return
    timed = (
        ("the first token", new.first_token, old.first_token),
        ("each further token", new.token, old.token),
    )
    for what, mine, theirs in timed:
        # Nothing follows an embedding's first token, with either version.
        is_there = mine.total or theirs.total or what == timed[0][0]
        if is_there and min(mine.total, theirs.total) < least:
            counted = f"{what} was timed in {mine.total} answers, the old version's in"
            yield Verdict.WAIT, f"{counted} {theirs.total}; {least} of either are needed"
        if mine.total and theirs.total:
            yield _slowness(what, mine, theirs, margin, alarm)


def _slowness(what: str, new: Latencies, old: Latencies, margin: float, alarm: float) -> Finding:
    medians = median_seconds(new), median_seconds(old)
    shift = math.ceil(math.log1p(margin) / _BIN - 1e-9)
    is_far = medians[0] > medians[1] * (1 + margin)
    figures = (
        f"{what} took {medians[0] * 1000:.3g} ms in the median of {new.total} answers, "
        f"the old version's {medians[1] * 1000:.3g} ms of {old.total}"
    )
    sure = sequential.slower(new.counts, old.counts, shift) if is_far else 0.0
    if sure >= alarm:
        return Verdict.BAD, figures
    is_early = min(new.total, old.total) < _TELLING_ANSWERS
    return _unless_suspicious(sure > 0 if is_early else sure >= _SUSPICIOUS, figures)


def _cuts(new: Answers, old: Answers, policy: AnalysisPolicy, alarm: float) -> Iterator[Finding]:
    margin = policy.max_cut_increase
    whole, old_whole = new.stops + new.lengths, old.stops + old.lengths
    if margin is None or not whole or not old_whole:
        return
    sure = sequential.more_failures(new.lengths, whole, old.lengths, old_whole, margin)
    figures = (
        f"{_share(new.lengths, whole)} of its answers were cut at their largest length, "
        f"of the old version's {_share(old.lengths, old_whole)}"
    )
    if sure >= alarm:
        yield Verdict.BAD, figures
    else:
        yield _unless_suspicious(sure >= _SUSPICIOUS, figures)


def _quality(evidence: Evidence, policy: AnalysisPolicy) -> Iterator[Finding]:
    # Asked again, a prompt says nothing new.
    once = {pair.prompt: pair for pair in reversed(evidence.pairs)}
    scored = [pair for pair in once.values() if math.isfinite(pair.old)]
    unscored = sum(1 for pair in scored if not math.isfinite(pair.new))
    if unscored >= policy.unscored_limit:
        yield (
            Verdict.BAD,
            f"{unscored} of {len(scored)} answers could not be scored where the old version's "
            "could: they are not finite, or not one token",
        )
    new, old = evidence.asked_new, evidence.asked_old
    if new.failures - old.failures >= policy.unanswered_limit:
        yield (
            Verdict.BAD,
            f"{_share(new.failures, new.requests)} of the questions with golden prompts failed, "
            f"of the old version's {_share(old.failures, old.requests)}",
        )
    yield from _are_enough(len(once), len(scored), evidence.pairs_expected, policy.minimum_pairs)
    kinds: dict[str, list[float]] = {}
    for pair in scored:
        kinds.setdefault(pair.prompt.partition("/")[0], []).append(pair.difference)
    alarm = math.log(_SIGNALS * max(1, len(kinds)) / policy.false_alarm_rate)
    more_come = are_prompts_missing(evidence)
    for kind, differences in sorted(kinds.items()):
        yield _loss(kind, differences, policy, alarm, more_come)


def _are_enough(asked: int, scored: int, expected: int | None, least: int) -> Iterator[Finding]:
    """Whether there are the pairs that there are to be."""
    if expected is None:
        yield Verdict.WAIT, "its golden prompts have not been read yet"
    elif asked < max(least, expected):
        yield (
            Verdict.WAIT,
            f"{asked} prompts were scored with both versions; {max(least, expected)} are needed",
        )
    elif scored < least:
        yield (
            Verdict.WAIT,
            f"{scored} prompts could be scored with the old version; {least} are needed",
        )
    elif not asked:
        yield Verdict.GOOD, "its artifact has no golden prompts, so that its quality was not tested"


def _loss(
    kind: str, differences: Sequence[float], policy: AnalysisPolicy, alarm: float, more_come: bool
) -> Finding:
    bound, margin = policy.quality_bound, policy.max_quality_loss
    largest = max(bound, policy.broken_loss)
    mean = sum(max(-largest, min(largest, each)) for each in differences) / len(differences)
    figures = (
        f"its {kind} scores differ by {mean:+.3g} in the mean of {len(differences)} prompts; "
        f"{-margin:g} is allowed"
    )
    sure = sequential.worse(differences, bound, margin)
    is_broken = len(differences) >= _FEW and mean <= -policy.broken_loss
    if sure >= alarm or is_broken:
        return Verdict.BAD, figures
    return _unless_suspicious(sure >= _SUSPICIOUS and more_come, figures)


def _unless_suspicious(is_suspicious: bool, figures: str) -> Finding:
    if is_suspicious:
        return Verdict.WAIT, f"{figures}; that can still be chance"
    return Verdict.GOOD, figures


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "none of 0"


def _rate(answers: Answers) -> float:
    return answers.failures / answers.requests if answers.requests else 0.0


def median_seconds(latencies: Latencies) -> float:
    """The upper bound of the bin that the median is in; of those beyond all, twice the last.

    Raises:
        ValueError: nothing was timed.
    """
    if not latencies.total:
        raise ValueError("nothing was timed")
    bounds = (*LATENCY_BOUNDS, 2 * LATENCY_BOUNDS[-1])
    reached = itertools.accumulate(latencies.counts)
    return next(bounds[index] for index, seen in enumerate(reached) if 2 * seen >= latencies.total)
