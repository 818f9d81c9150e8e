"""What the quality report says of a search (``service.proto``: SearchRecord)."""

from collections.abc import Mapping
from typing import Any

from millrace_compressor.jobs.hardware import Hardware
from millrace_compressor.jobs.search import Candidate, Trial, Trials

_BROKEN = {
    "keeps_quality": "quality",
    "keeps_size": "size",
    "keeps_latency": "latency",
}


def of(
    trials: Trials,
    chosen: Candidate,
    found: Mapping[Candidate, Mapping[str, Any]],
    machine: Hardware,
) -> dict[str, Any]:
    """All that was tried, in the order of it, and why one of them was chosen."""
    return {
        "hardware": str(machine),
        "trials": [_trial(each, trial, found[each], chosen) for each, trial in trials.items()],
        "reason": _reason(trials, chosen),
        "unmet": [] if trials[chosen].passes else _unmet(trials, trials[chosen]),
    }


def _trial(
    candidate: Candidate, trial: Trial, found: Mapping[str, Any], chosen: Candidate
) -> dict[str, Any]:
    broken = [] if trial.error else [w for name, w in _BROKEN.items() if not getattr(trial, name)]
    measured = {
        "perplexity_increase": trial.perplexity_increase,
        "latency_seconds": trial.latency_seconds,
        "kl_divergence": found.get("kl_divergence"),
        "top1_agreement": found.get("top1_agreement"),
        "task_score": trial.task_score,
    }
    method = {} if candidate.weight_method is None else {"weight_method": candidate.weight_method}
    size = {} if candidate.group_size is None else {"group_size": candidate.group_size}
    return {
        "target": f"TARGET_{candidate.target.replace('-', '_').upper()}",
        "recipe": {**size, **method},
        "layers_in_8_bits": candidate.raised,
        "evaluated_tokens": found.get("evaluated_tokens", 0),
        "size_bytes": trial.size_bytes,
        **{name: value for name, value in measured.items() if value is not None},
        "broken": broken,
        "error": trial.error,
        "chosen": candidate == chosen,
    }


def _reason(trials: Trials, chosen: Candidate) -> str:
    tried = f"{len(trials)} tried"
    if not trials[chosen].passes:
        return f"nothing passes ({tried}); {chosen} comes nearest"
    passing = sum(trial.passes for trial in trials.values())
    if passing == 1:
        return f"{chosen} is the only one that passes ({tried})"
    smallest = min(trial.size_bytes for trial in trials.values() if trial.passes)
    if trials[chosen].size_bytes == smallest:
        return f"{chosen} is the smallest of {passing} that pass ({tried})"
    return f"{chosen} is the fastest of the smallest that pass, of {passing} ({tried})"


def _unmet(trials: Trials, nearest: Trial) -> list[str]:
    """One sentence a constraint that what comes nearest breaks: how near anything came to it."""
    made = {each: trial for each, trial in trials.items() if not trial.error}
    reasons = []
    if not nearest.keeps_quality:
        each = min(made, key=lambda one: (_or_most(made[one].perplexity_increase), str(one)))
        reasons.append(
            f"nothing tried keeps the quality: the nearest is {each}, with perplexity "
            f"{_percent(made[each].perplexity_increase)}{_scored(made[each])}"
        )
    keeping = {each: trial for each, trial in made.items() if trial.keeps_quality}
    if not nearest.keeps_size:
        some = keeping or made
        each = min(some, key=lambda one: (some[one].size_bytes, str(one)))
        told = "that keeps the quality " if keeping else ""
        reasons.append(
            f"nothing tried is small enough: the smallest {told}is {each}, with "
            f"{some[each].size_bytes} bytes"
        )
    if not nearest.keeps_latency:
        some = keeping or made
        each = min(some, key=lambda one: (_or_most(some[one].latency_seconds), str(one)))
        seconds = some[each].latency_seconds
        told = "not measured" if seconds is None else f"{seconds:.3g} seconds"
        reasons.append(f"nothing tried is fast enough: the fastest is {each}, with {told}")
    return reasons


def _or_most(value: float | None) -> float:
    return float("inf") if value is None else value


def _scored(trial: Trial) -> str:
    return "" if trial.task_score is None else f" and a task score of {trial.task_score:.4g}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:+.2%}"
