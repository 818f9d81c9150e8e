"""A rollout's evidence as the few figures that users are shown (``service.proto``:
RolloutEvidence, in JSON). Pure."""

import math
from statistics import fmean
from typing import Any

from millrace_registry.evidence import Answers, Evidence, Latencies
from millrace_runtime import latency


def figures(evidence: Evidence) -> dict[str, Any]:
    """Empty fields are left out, as JSON of a message has it."""
    differences = [pair.difference for pair in evidence.pairs]
    finite = [difference for difference in differences if math.isfinite(difference)]
    return _told(
        new=answer_figures(evidence.new),
        old=answer_figures(evidence.old),
        pairs=len(differences) or None,
        pairs_expected=evidence.pairs_expected or None,
        unscored=len(differences) - len(finite) or None,
        mean_score_difference=fmean(finite) if finite else None,
    )


def answer_figures(answers: Answers) -> dict[str, Any]:
    ended = answers.stops + answers.lengths
    return _told(
        requests=answers.requests or None,
        failures=answers.failures or None,
        first_token_seconds_p50=_quantile(answers.first_token, 0.5),
        first_token_seconds_p95=_quantile(answers.first_token, 0.95),
        token_seconds_p50=_quantile(answers.token, 0.5),
        mean_tokens=answers.tokens / ended if ended else None,
        cut_share=answers.lengths / ended if ended else None,
    )


def _quantile(latencies: Latencies, share: float) -> float | None:
    counts = {index: count for index, count in enumerate(latencies.counts) if count}
    return latency.quantile(counts, share)


def _told(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
