"""How answers are scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_compressor.jobs.task_metrics import (
    SCORES,
    Metric,
    contains,
    exact_match,
    mean_score,
    normalised,
    token_f1,
)

words = st.lists(st.sampled_from(["the", "Paris", "a", "42", "+", "no", "know", "北京", "é"]))
texts = words.map(" ".join) | st.text(max_size=20)
METRICS: tuple[Metric, ...] = tuple(SCORES)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (" The  Paris. ", "paris", (1, 1, 1)),
        ("It is Paris, France.", "Paris", (0, 1, 0.4)),
        ("I know", "no", (0, 0, 0)),
        ("100", "10", (0, 0, 0)),
        ("首都是北京。", "北京", (0, 1, 0)),
        ("a b c", "c d", (0, 0, 0.5)),  # "a" is an article
        ("", "Paris", (0, 0, 0)),
        ("Paris", "the", (0, 0, 0)),
        ("+", " + ", (1, 1, 1)),  # nothing is left of it: it is compared as it stands
        ("-", "+", (0, 0, 0)),
        ("dog dog", "dog", (0, 1, 2 / 3)),
    ],
)
def test_each_metric(answer: str, reference: str, expected: tuple[float, float, float]) -> None:
    found = (exact_match(answer, reference), contains(answer, reference))
    assert found == expected[:2]
    assert token_f1(answer, reference) == pytest.approx(expected[2])


@given(answer=texts, reference=texts, metric=st.sampled_from(METRICS))
def test_a_score_is_a_share_and_the_reference_itself_is_right(
    answer: str, reference: str, metric: Metric
) -> None:
    assert 0 <= SCORES[metric](answer, reference) <= 1
    assert SCORES[metric](reference, reference) == 1


@given(answer=texts, reference=texts)
def test_what_matches_exactly_is_contained_and_has_all_words(answer: str, reference: str) -> None:
    if exact_match(answer, reference):
        assert contains(answer, reference) == 1
        assert token_f1(answer, reference) == 1


@given(text=texts)
def test_normalising_twice_changes_no_more_than_once(text: str) -> None:
    once = normalised(text)
    assert once == " ".join(once.split())
    assert exact_match(f"  {text}!", text) == 1 or not once


def test_the_mean_is_over_all_rows() -> None:
    assert mean_score("TASK_METRIC_EXACT_MATCH", ["a b", "x"], ["b", "y"]) == 0.5
    with pytest.raises(ValueError, match="argument 2"):
        mean_score("TASK_METRIC_EXACT_MATCH", ["b"], ["b", "y"])
