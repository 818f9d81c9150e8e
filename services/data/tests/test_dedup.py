import random

from data_builders import prose
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_data.jobs import dedup
from millrace_data.jobs.corpus import Document


def document(text: str) -> Document:
    return Document("here", "prose", (text,))


def edited(text: str, changes: int, seed: int) -> str:
    """``text`` with ``changes`` words replaced by new ones."""
    words = text.split(" ")
    for place in random.Random(seed).sample(range(len(words)), changes):
        words[place] = f"new{seed}x{place}"
    return " ".join(words)


@given(st.lists(st.sampled_from("abcdefg")))
def test_exact_keeps_the_first_of_each_class(texts: list[str]) -> None:
    documents = [document(text) for text in texts]
    kept = dedup.without_exact_duplicates(documents)
    assert [d.text for d in kept] == list(dict.fromkeys(texts))
    assert all(any(d is original for original in documents) for d in kept)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_near_keeps_one_of_each_class(seeds: list[int]) -> None:
    """A class is a base text and copies with one word changed; the bases are unrelated."""
    documents = [document(edited(prose(s, 40), 1, i)) for i, s in enumerate(seeds)]
    kept = dedup.without_near_duplicates(documents, threshold=0.8)
    first_of_class = [documents[seeds.index(s)] for s in dict.fromkeys(seeds)]
    assert kept == first_of_class


def test_threshold_is_measured_exactly() -> None:
    """A document is dropped only when its true similarity reaches the threshold."""
    base = prose(1, 40)
    half_changed = edited(base, 60, 1)
    similarity = dedup.jaccard(dedup.shingles(base), dedup.shingles(half_changed))
    assert 0.2 < similarity < 0.7
    documents = [document(base), document(half_changed)]
    assert len(dedup.without_near_duplicates(documents, threshold=similarity + 0.01)) == 2


def test_jaccard_is_that_of_the_sets_of_five_words() -> None:
    one = "a b c d e f"  # abcde bcdef
    other = "a b c d e g"  # abcde bcdeg
    assert dedup.jaccard(dedup.shingles(one), dedup.shingles(other)) == 1 / 3
    assert dedup.jaccard(dedup.shingles(one), dedup.shingles("a, b; c (d) e f!")) == 1.0


def test_texts_without_words_are_never_near_duplicates() -> None:
    documents = [document("()"), document("[]"), document("")]
    assert dedup.without_near_duplicates(documents, threshold=0.5) == documents


def test_hashes_are_the_same_in_every_process() -> None:
    assert dedup.shingles("one two three four five").tolist() == [805062980]
