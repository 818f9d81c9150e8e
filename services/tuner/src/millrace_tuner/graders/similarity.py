"""How alike two texts are, in [0, 1], by each ``evaluation_metric`` of the OpenAI API.

Words are what ``\\w+`` finds in lower-case text for ``bleu``, ``gleu``, ``meteor`` and ``cosine``;
ROUGE tokenizes and stems by itself (rouge-score). Nothing is downloaded:

- ``meteor`` (Banerjee and Lavie 2005) matches exact words and Porter stems. The third stage of
  the paper, WordNet's synonyms, needs data that is not part of any package, and is left out.
- ``cosine`` is over counts of words. OpenAI's compares embeddings of a model of its own.
- ``bleu`` is of one sentence, with up to 4-grams, smoothed by Chen and Cherry's method 1 (2014).
- ``fuzzy_match`` is rapidfuzz's normalised InDel similarity.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

_WORD = re.compile(r"\w+")
_BLEU_ORDER = 4
# What takes the product of both lengths must end within seconds: words in Python, characters in
# rapidfuzz's 64 at a time.
_PER_WORD = frozenset(("meteor", "rouge_l"))
_MOST_WORD_PAIRS = 25_000_000
_MOST_CHARACTER_PAIRS = 100_000_000_000


class TooLong(ValueError):
    """The texts are too long to be compared in reasonable time."""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _fuzzy_match(text: str, reference: str) -> float:
    from rapidfuzz import fuzz

    return float(fuzz.ratio(text, reference)) / 100


def _bleu(text: str, reference: str) -> float:
    from nltk.translate import bleu_score

    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return float(words == wanted)
    # A reference of two words has no 4-grams: equal texts must still be worth 1.
    order = min(_BLEU_ORDER, len(words), len(wanted))
    smoothing = bleu_score.SmoothingFunction().method1
    weights = (1 / order,) * order
    return float(bleu_score.sentence_bleu([wanted], words, weights, smoothing))


def _gleu(text: str, reference: str) -> float:
    from nltk.translate import gleu_score

    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return float(words == wanted)
    return float(gleu_score.sentence_gleu([wanted], words))


class _NoWordNet:
    """Stands in for WordNet's data, which is not installed: no word has synonyms."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def _meteor(text: str, reference: str) -> float:
    from nltk.translate import meteor_score

    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return float(words == wanted)
    return float(meteor_score.single_meteor_score(wanted, words, wordnet=_NoWordNet()))


def _cosine(text: str, reference: str) -> float:
    one, other = Counter(_words(text)), Counter(_words(reference))
    if not one or not other:
        return float(one == other)
    product = sum(count * other[word] for word, count in one.items())
    return product / (math.hypot(*one.values()) * math.hypot(*other.values()))


@cache
def _rouge_scorer(kind: str) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([kind], use_stemmer=True)


def _rouge(kind: str, text: str, reference: str) -> float:
    return float(_rouge_scorer(kind).score(reference, text)[kind].fmeasure)


_MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "cosine": _cosine,
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{n}": partial(_rouge, f"rouge{n}") for n in range(1, 6)},
    "rouge_l": partial(_rouge, "rougeL"),
}
METRICS = tuple(_MEASURES)


def measure(metric: str, text: str, reference: str) -> float:
    """How alike ``text`` is to ``reference``, in [0, 1].

    Two empty texts are equal; by ROUGE they have nothing in common, as texts without an n-gram.

    Raises:
        KeyError: there is no such metric.
        TooLong
    """
    if metric in _PER_WORD:
        pairs, most = len(_words(text)) * len(_words(reference)), _MOST_WORD_PAIRS
    else:
        pairs, most = len(text) * len(reference), _MOST_CHARACTER_PAIRS
    if pairs > most:
        raise TooLong(f"the texts are too long for {metric}")
    return min(max(_MEASURES[metric](text, reference), 0.0), 1.0)
