"""What a gateway counts of the versions that it asks."""

from millrace_gateway import convert
from millrace_gateway.answers import Answer, AnswerCounts, VersionAnswers
from millrace_runtime import latency

KEY = ("acme", "demo", 7)


def counted(*answers: Answer) -> VersionAnswers:
    counts = AnswerCounts()
    for answer in answers:
        counts.answered(*KEY, answer)
    [found] = counts.all()
    return found


def test_whole_answers_are_counted_by_time_end_and_length() -> None:
    found = counted(Answer(5, 0.2, 0.01, "stop"), Answer(8, 0.2, 0.03, "length"))
    assert (found.requests, found.failures, found.tokens) == (2, 0, 13)
    assert (found.stops, found.lengths) == (1, 1)
    assert found.first_token_latencies == {latency.index_of(0.2): 2}
    assert found.token_latencies == {latency.index_of(0.01): 1, latency.index_of(0.03): 1}


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    found = counted(Answer(1, 0.2, None, "length"))
    assert sum(found.first_token_latencies.values()) == 1
    assert found.token_latencies == {}


def test_what_comes_at_once_or_without_tokens_has_no_first_token() -> None:
    found = counted(Answer(9, 2.0, is_timed=False), Answer(0, 0.2))
    assert found.requests == 2
    assert found.first_token_latencies == {}
    assert found.stops == found.lengths == 0


def test_a_failure_has_no_latency() -> None:
    counts = AnswerCounts()
    counts.failed(*KEY)
    [found] = counts.all()
    assert (found.requests, found.failures) == (1, 1)
    assert found.first_token_latencies == {}


def test_a_report_tells_all_of_it_from_the_beginning() -> None:
    counts = AnswerCounts()
    for _ in range(2):
        counts.answered(*KEY, Answer(5, 0.2, 0.01, "stop"))
        report = convert.answers(counts)
    assert report.gateway == counts.life
    [told] = report.answers
    assert dict(told.first_token_latencies) == {latency.index_of(0.2): 2}
    assert dict(told.token_latencies) == {latency.index_of(0.01): 2}
    assert (told.requests, told.tokens, told.stops, told.lengths) == (2, 10, 2, 0)
