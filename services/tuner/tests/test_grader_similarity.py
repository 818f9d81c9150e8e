"""Similarity: each metric against figures that were worked out by hand or are known."""

import math

import pytest

from millrace_tuner.graders.similarity import METRICS, TooLong, measure

WANTED = "the cat sat on the mat"


@pytest.mark.parametrize("metric", METRICS)
def test_equal_texts_are_alike_and_others_are_not(metric: str) -> None:
    assert measure(metric, WANTED, WANTED) == pytest.approx(1, abs=0.01)
    assert measure(metric, "zzz", WANTED) < 0.1
    assert measure(metric, "", WANTED) == 0
    assert 0 < measure(metric, "the cat sat on the mat today", WANTED) < 1


@pytest.mark.parametrize(
    ("metric", "text", "expected"),
    [
        # (1 the, 1 cat) · (2 the, 1 cat, 1 sat, 1 on, 1 mat) = 3; their lengths are √2 and √8.
        ("cosine", "the cat", 3 / (math.sqrt(2) * math.sqrt(8))),
        ("rouge_1", "the cat", 2 * (1 * 2 / 6) / (1 + 2 / 6)),
        ("rouge_2", "the cat", 2 * (1 * 1 / 5) / (1 + 1 / 5)),
        ("rouge_l", "cat mat", 2 * (1 * 2 / 6) / (1 + 2 / 6)),
        # Both texts share 7 characters in order, of 7 + 22.
        ("fuzzy_match", "the cat", 14 / 29),
        # 1- and 2-grams are all right; the brevity penalty is e^(1 - 6/2).
        ("bleu", "the cat", math.exp(1 - 6 / 2)),
        # 3 of the reference's 18 n-grams up to 4 words.
        ("gleu", "the cat", 3 / 18),
        # P = 1, R = 1/3, one chunk of two: F = 10PR/(R+9P), penalty 0.5·(1/2)³.
        ("meteor", "cat sat", (10 * (1 / 3)) / (1 / 3 + 9) * (1 - 0.5 * (1 / 2) ** 3)),
    ],
)
def test_figures(metric: str, text: str, expected: float) -> None:
    assert measure(metric, text, WANTED) == pytest.approx(expected)


def test_meteor_matches_stems() -> None:
    assert measure("meteor", "running cats", "run cat") == measure("meteor", "run cat", "run cat")


@pytest.mark.parametrize("metric", ["meteor", "rouge_l"])
def test_what_would_take_for_ever_is_refused(metric: str) -> None:
    with pytest.raises(TooLong):
        measure(metric, "a " * 10_000, "b " * 10_000)
