"""The gate: from measurements and a policy to a verdict. Pure.

What a policy judges must be measured: a measurement that is missing or not a finite number
does not pass, whatever the limit. Parity is judged whatever the policy.
"""

import math
from collections.abc import Iterator

from millrace_compressor.domain import GatePolicy, Measurements, Parity, Verdict

_STAGES = frozenset(("merge", "template"))
_LAST_STAGES = frozenset(("export", "quantisation"))
_DIGITS = 9


def decide(measured: Measurements, policy: GatePolicy) -> Verdict:
    """Whether an artifact is good enough; one sentence a broken rule, with the figures."""
    reasons = (*_mismatches(measured.parity), *_broken(measured, policy))
    if reasons and measured.search:  # of what came nearest: how near anything came
        reasons += tuple(measured.search["unmet"])
    return Verdict(passed=not reasons, reasons=reasons)


def perplexity_increase(measured: Measurements) -> float | None:
    """Relative: 0.02 is two percent worse than the original. None when it was not measured."""
    original, artifact = measured.original_perplexity, measured.artifact_perplexity
    if not _is_measured(original) or not _is_measured(artifact) or not original:
        return None
    assert artifact is not None
    return artifact / original - 1


def size_ratio(measured: Measurements) -> float | None:
    """Artifact over original, in bytes."""
    if measured.original_size_bytes <= 0 or measured.artifact_size_bytes <= 0:
        return None
    return measured.artifact_size_bytes / measured.original_size_bytes


def latency_seconds(measured: Measurements) -> float | None:
    """First token plus one more, one stream."""
    if not _is_measured(measured.first_token_seconds) or not _is_measured(measured.token_seconds):
        return None
    assert measured.first_token_seconds is not None
    assert measured.token_seconds is not None
    return measured.first_token_seconds + measured.token_seconds


def task_score_decrease(measured: Measurements) -> float | None:
    """Absolute: 0.02 is two percentage points less than the original. None: not measured."""
    original, artifact = task_score(measured, "original"), task_score(measured)
    if original is None or artifact is None:
        return None
    return round(original - artifact, _DIGITS)  # one row of fifty is 0.02, and not a bit more


def judges_task(policy: GatePolicy) -> bool:
    return policy.max_task_score_decrease is not None or policy.min_task_score is not None


def task_score(measured: Measurements, of: str = "artifact") -> float | None:
    """Of the artifact, or of the original; 0 to 1. None: not measured."""
    score = (measured.task or {}).get(f"{of}_score")
    return float(score) if score is not None and math.isfinite(score) else None


def _mismatches(parity: Parity | None) -> Iterator[str]:
    """Where the artifact is not what was trained; with probes, all stages must have been made."""
    if parity is None:
        return
    made = {stage.stage for stage in parity.stages}
    missing = sorted(_STAGES - made) + ([] if made & _LAST_STAGES else [min(_LAST_STAGES)])
    if missing:
        yield f"parity was not measured at the stage {missing[0]!r}, and there are probes"
    for stage in parity.stages:
        if stage.mismatch:
            yield f"parity is broken at the stage {stage.stage!r}: {stage.mismatch}"


def _broken(measured: Measurements, policy: GatePolicy) -> Iterator[str]:
    at_most = (
        ("perplexity increase", perplexity_increase(measured), policy.max_perplexity_increase),
        ("size ratio", size_ratio(measured), policy.max_size_ratio),
        ("size in bytes", measured.artifact_size_bytes or None, policy.max_size_bytes),
        ("latency in seconds", latency_seconds(measured), policy.max_latency_seconds),
        ("task score decrease", task_score_decrease(measured), policy.max_task_score_decrease),
    )
    for what, value, limit in at_most:
        if limit is None:
            continue
        if value is None or not math.isfinite(value):
            yield f"{what} was not measured, and at most {limit:g} is asked for"
        elif value > limit:
            yield f"{what} is {value:.4g}, more than {limit:g}"
    at_least = (
        ("top-1 agreement", measured.top1_agreement, policy.min_top1_agreement),
        ("task score", task_score(measured), policy.min_task_score),
    )
    for what, value, least in at_least:
        if least is None:
            continue
        if value is None or not math.isfinite(value):
            yield f"{what} was not measured, and at least {least:g} is asked for"
        elif value < least:
            yield f"{what} is {value:.4g}, less than {least:g}"


def _is_measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
