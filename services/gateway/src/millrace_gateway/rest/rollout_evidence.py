"""What a rollout's present step is judged by, as ``/v1/rollouts`` shows it."""

from pydantic import BaseModel

from millrace.registry.v1 import service_pb2 as pb


class AnswerFigures(BaseModel):
    """How one version answered. Latencies and lengths are of clients' whole answers; null: there
    were none."""

    requests: int
    failures: int
    first_token_seconds_p50: float | None
    first_token_seconds_p95: float | None
    token_seconds_p50: float | None
    mean_tokens: float | None
    cut_share: float | None


class RolloutEvidence(BaseModel):
    """``pairs``: golden prompts that both versions have scored, of ``pairs_expected``; on
    ``unscored`` of them the new version alone gave no number. ``mean_score_difference``: how much
    likelier the others are to the new one, in nats a token."""

    new: AnswerFigures
    old: AnswerFigures
    pairs: int
    pairs_expected: int
    unscored: int
    mean_score_difference: float | None


_OPTIONAL = (
    "first_token_seconds_p50",
    "first_token_seconds_p95",
    "token_seconds_p50",
    "mean_tokens",
    "cut_share",
)


def evidence_of(message: pb.RolloutEvidence) -> RolloutEvidence:
    has_difference = message.HasField("mean_score_difference")
    return RolloutEvidence(
        new=_figures(message.new),
        old=_figures(message.old),
        pairs=message.pairs,
        pairs_expected=message.pairs_expected,
        unscored=message.unscored,
        mean_score_difference=message.mean_score_difference if has_difference else None,
    )


def _figures(message: pb.AnswerFigures) -> AnswerFigures:
    given = {
        name: getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]
        for name in _OPTIONAL
    }
    return AnswerFigures(requests=message.requests, failures=message.failures, **given)
