"""What users are shown of a rollout's evidence."""

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway.rest.rollout_evidence import evidence_of


def test_figures_are_told_and_those_that_there_are_not_are_null() -> None:
    new = pb.AnswerFigures(requests=9, failures=1, first_token_seconds_p50=0.2, cut_share=0.0)
    message = pb.RolloutEvidence(new=new, pairs=4, pairs_expected=16, unscored=1)
    shown = evidence_of(message)
    assert (shown.new.requests, shown.new.failures) == (9, 1)
    assert (shown.new.first_token_seconds_p50, shown.new.cut_share) == (0.2, 0.0)
    assert shown.new.token_seconds_p50 is None
    assert shown.old.requests == 0
    assert (shown.pairs, shown.pairs_expected, shown.unscored) == (4, 16, 1)
    assert shown.mean_score_difference is None


def test_a_difference_of_nothing_is_a_difference() -> None:
    assert evidence_of(pb.RolloutEvidence(mean_score_difference=0)).mean_score_difference == 0.0
