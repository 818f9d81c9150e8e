"""What came of a search, in figures and in words. Standard library only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from millrace_registry.domain import Serving
from millrace_registry.tuning.decision import LEAST_NOISE, noise_of
from millrace_registry.tuning.resource import Result, ServingTuning, State
from millrace_registry.tuning.trial import Kind, Trial

CONFIDENCE = 0.95
# Quantiles of Student's t for a two-sided interval of 95 %, by degrees of freedom: at most two
# looks at each, so at most two degrees.
_STUDENT = {1: 12.706, 2: 4.303}

_FIGURES = (
    ("SINGLE_STREAM", "single_stream_seconds_p90", "seconds"),
    ("SINGLE_STREAM", "single_stream_first_token_seconds_p90", "seconds"),
    ("OFFLINE", "offline_tokens_per_second", "tokens_per_second"),
    ("OFFLINE", "offline_requests_per_second", "requests_per_second"),
    ("SERVER", "server_requests_per_second", "requests_per_second"),
    ("SERVER", "server_tokens_per_second", "tokens_per_second"),
    ("SERVER", "server_first_token_seconds_p99", "seconds"),
    ("SERVER", "server_token_seconds_p99", "seconds"),
)


@dataclass(frozen=True)
class Figure:
    """One figure of one scenario; None: not measured."""

    scenario: str
    name: str
    unit: str
    present: float | None
    best: float | None


@dataclass(frozen=True)
class Gain:
    """How much more the best candidate answers, as a share; its interval, if there is one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Requests a second within the target, a look each (``serving_tunings.proto``).

    ``best`` is empty and ``best_trial`` None where no candidate was better at first.
    """

    present: tuple[float, ...]
    best: tuple[float, ...]
    best_trial: int | None
    noise: float
    gain: Gain | None

    @property
    def needed(self) -> float:
        return max(self.present) * (1 + self.noise)


@dataclass(frozen=True)
class Report:
    """``comparison`` is None before the present settings were measured."""

    tuning: ServingTuning
    conclusion: str
    figures: tuple[Figure, ...]
    comparison: Comparison | None


def report_of(tuning: ServingTuning) -> Report:
    """The present settings beside the best candidate, and what that says."""
    comparison = _comparison(tuning.trials)
    return Report(tuning, conclusion(tuning, comparison), _figures(tuning.trials), comparison)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The candidate that answered most, if more than the present settings at first."""
    candidates = [trial for trial in trials if trial.look_kind == Kind.CANDIDATE]
    best = max(candidates, key=lambda trial: trial.score, default=None)
    present = max(_scores(trials, Kind.PRESENT), default=0.0)
    return best if best is not None and best.score > present else None


def _comparison(trials: Sequence[Trial]) -> Comparison | None:
    present = (*_scores(trials, Kind.PRESENT), *_scores(trials, Kind.CONTROL))
    if not present:
        return None
    found = best_of(trials)
    best = () if found is None else (found.score, *_scores(trials, Kind.CONFIRMATION))
    return Comparison(
        present=present,
        best=best,
        best_trial=None if found is None else found.number,
        noise=noise_of(present),
        gain=gain(present, best),
    )


def gain(present: Sequence[float], best: Sequence[float]) -> Gain | None:
    """By how much ``best`` is above ``present``, with Student's interval of their logarithms.

    Their spread is taken to be equal (the pooled variance), and two looks never to be closer than
    ``LEAST_NOISE``. The interval knows nothing of the candidate having been chosen as the best of
    many; the decision makes up for that, which takes the lower of its looks. None: a look without a
    rate, or none at all.
    """
    if not present or not best or min(*present, *best) <= 0:
        return None
    sides = [[math.log(score) for score in side] for side in (present, best)]
    means = [fmean(side) for side in sides]
    mean = means[1] - means[0]
    freedom = len(present) + len(best) - 2
    if freedom not in _STUDENT:
        return Gain(math.expm1(mean))
    squares = sum((x - m) ** 2 for side, m in zip(sides, means, strict=True) for x in side)
    variance = max(squares / freedom, LEAST_NOISE**2 / 2)
    error = math.sqrt(variance * (1 / len(present) + 1 / len(best)))
    half = _STUDENT[freedom] * error
    return Gain(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


def _scores(trials: Sequence[Trial], kind: Kind) -> list[float]:
    return [trial.score for trial in trials if trial.look_kind == kind]


def _figures(trials: Sequence[Trial]) -> tuple[Figure, ...]:
    present = next((trial for trial in trials if trial.look_kind == Kind.PRESENT), None)
    best = best_of(trials)
    return tuple(
        Figure(scenario, name, unit, _figure(present, name), _figure(best, name))
        for scenario, name, unit in _FIGURES
    )


def _figure(trial: Trial | None, name: str) -> float | None:
    value: float | None = None if trial is None else getattr(trial.figures, name)
    return value


def conclusion(tuning: ServingTuning, compared: Comparison | None) -> str:
    """What came of a search, for people."""
    if tuning.state == State.FAILED and tuning.failure:
        return f"The search failed, and nothing was changed: {tuning.failure.message}"
    if tuning.state == State.CANCELLED:
        return "The search was cancelled; nothing was changed."
    if tuning.result is None or compared is None:
        done = f"{tuning.progress.completed} of at most {tuning.progress.total} looks"
        return f"The search has not ended: {done} ({tuning.progress.phase})."
    if not tuning.result.is_better:
        return " ".join(["No winner: the present settings stay.", *_no_winner(tuning, compared)])
    return " ".join([*_winner(tuning, compared), _written(tuning, tuning.result)])


def _no_winner(tuning: ServingTuning, compared: Comparison) -> list[str]:
    said = [_present(compared)]
    if compared.best_trial is None:
        tried = len(_scores(tuning.trials, Kind.CANDIDATE))
        candidates = "1 candidate" if tried == 1 else f"{tried} candidates"
        said.append(f"None of {candidates} answered more than the first look at them.")
        return said
    said.append(
        f"The best candidate, trial {compared.best_trial}, answered {_rates(compared.best)}; "
        f"every look at it had to be above {compared.needed:.3g}."
    )
    return [*said, *_gain(compared.gain)]


def _winner(tuning: ServingTuning, compared: Comparison) -> list[str]:
    winner = next(t for t in tuning.trials if t.number == compared.best_trial)
    said = (
        f"Trial {winner.number} ({settings_of(winner.serving)}) answers {_rates(compared.best)} "
        "requests/s within the target."
    )
    passed = f"Every look at it was above {compared.needed:.3g}, as it had to be."
    above = [passed] if compared.needed else []
    return [said, _present(compared), *above, *_gain(compared.gain)]


def _present(compared: Comparison) -> str:
    if not max(compared.present):
        return "The present settings do not meet the target at any rate that was tried."
    rates = _rates(compared.present)
    if len(compared.present) < 2:
        return f"The present settings answered {rates} requests/s within the target."
    spread = 1 - min(compared.present) / max(compared.present)
    return (
        f"The present settings answered {rates} requests/s within the target: {spread:.0%} apart, "
        f"so on this machine {compared.noise:.0%} more or less says nothing."
    )


def _gain(found: Gain | None) -> list[str]:
    if found is None:
        return []
    if found.low is None or found.high is None:
        return [f"On average that is {found.mean:+.0%}, from too few looks to say how sure."]
    interval = f"{CONFIDENCE:.0%} interval {found.low:+.0%} to {found.high:+.0%}"
    return [f"On average that is {found.mean:+.0%} ({interval})."]


def _written(tuning: ServingTuning, result: Result) -> str:
    if result.is_written:
        return f"Written to {tuning.deployment}."
    if tuning.wish.is_dry_run:
        return "Not written: a dry run."
    return "Not written: the deployment's settings were changed meanwhile."


def _rates(scores: Sequence[float]) -> str:
    return " and ".join(f"{score:.3g}" for score in scores)


def settings_of(serving: Serving) -> str:
    """Settings in a few words."""
    named = {
        "instances": serving.instance_count,
        "batch": serving.max_batch_size,
        "threads": serving.threads,
        "cache GiB": serving.cache_gibibytes,
    }
    given = [f"{name} {value}" for name, value in named.items() if value is not None]
    return ", ".join(given) or "defaults"
