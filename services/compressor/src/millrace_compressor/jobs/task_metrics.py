"""How an answer is scored against its reference: 0 to 1. Pure.

Both are normalised as SQuAD's evaluation does it (Rajpurkar et al., arXiv:1606.05250): lower case,
without punctuation and English articles, one space between words. A reference of which nothing is
left (a sign, such as "+") is compared as it stands.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Literal

Metric = Literal["TASK_METRIC_EXACT_MATCH", "TASK_METRIC_CONTAINS", "TASK_METRIC_TOKEN_F1"]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both say the same words."""
    return float(_compared(answer, reference, lambda one, other: one == other))


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands in the answer, and not within a longer word or number."""
    return float(_compared(answer, reference, _stands_in))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it is said."""
    return _compared(answer, reference, _f1)


SCORES: Mapping[Metric, Callable[[str, str], float]] = {
    "TASK_METRIC_EXACT_MATCH": exact_match,
    "TASK_METRIC_CONTAINS": contains,
    "TASK_METRIC_TOKEN_F1": token_f1,
}


def mean_score(metric: Metric, answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean over at least one pair."""
    score = SCORES[metric]
    pairs = zip(answers, references, strict=True)
    return fsum(score(answer, reference) for answer, reference in pairs) / len(references)


def _compared(answer: str, reference: str, compare: Callable[[str, str], float]) -> float:
    """By what is left of both, or as they stand where nothing is left of the reference."""
    wanted = normalised(reference)
    if not wanted:
        return compare(answer.strip(), reference.strip())
    return compare(normalised(answer), wanted)


def _stands_in(answer: str, reference: str) -> bool:
    """Words of other scripts than Latin have no spaces between them: they have no such border."""
    found = rf"(?<![a-z0-9]){re.escape(reference)}(?![a-z0-9])"
    return re.search(found, answer) is not None


def _f1(answer: str, reference: str) -> float:
    said, wanted = answer.split(), reference.split()
    same = (Counter(said) & Counter(wanted)).total()
    if not same:
        return float(said == wanted)
    return 2 * same / (len(said) + len(wanted))
