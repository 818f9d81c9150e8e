"""Duplicates, exact and near, of which one is kept.

Near duplicates are found by MinHash with locality-sensitive hashing (Broder 1997, "On the
resemblance and containment of documents"; used on training text by Lee et al. 2021, "Deduplicating
Training Data Makes Language Models Better", arXiv:2107.06499, and on code by Allal et al. 2023,
"SantaCoder", arXiv:2301.03988, whose shingles of five words are taken here). A candidate pair is
then measured exactly, so an estimate never removes a document.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from millrace_data.jobs.corpus import Document

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# A pair proposed in vain costs one exact measurement; a pair missed is a duplicate kept.
_FALSE_POSITIVES_AND_NEGATIVES = (0.1, 0.9)
_BATCH_SHINGLES = 4096  # keeps a batch of hash values (128 x 4 bytes each) in the cache
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: mixes (Knuth, TAOCP 3, 6.4)
_WORD = re.compile(r"\w+")

Shingles = NDArray[np.uint32]  # sorted, unique


def without_exact_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The first document of every distinct text, in the order given."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.sha256, document)
    return list(first.values())


def without_near_duplicates(
    documents: list[Document],
    threshold: float,
    on_progress: Callable[[int], None] = lambda completed: None,
) -> list[Document]:
    """Drop each document whose Jaccard similarity to one already kept is ``threshold`` or more.

    Similarity is that of the sets of five-word shingles. A pair that LSH does not propose is
    not compared: at a similarity of 0.80, 0.90 and 0.95 and a threshold of 0.8, 13 in 100, 1 in
    1,000 and 1 in 1,000,000 are missed.
    """
    index = MinHashLSH(threshold, PERMUTATIONS, weights=_FALSE_POSITIVES_AND_NEGATIVES)
    blank = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    kept: list[Document] = []
    kept_shingles: list[Shingles] = []
    for completed, document in enumerate(documents, start=1):
        own = shingles(document.text)
        sketch = _sketch(own, blank)
        candidates = index.query(sketch) if own.size else []
        if not any(jaccard(own, kept_shingles[key]) >= threshold for key in candidates):
            if own.size:
                index.insert(len(kept), sketch)
            kept.append(document)
            kept_shingles.append(own)
        on_progress(completed)
    return kept


def shingles(text: str) -> Shingles:
    """32-bit hashes of every run of five words of ``text``, sorted and unique.

    Shorter texts have one shingle, all their words; a text without words has none.
    """
    words = np.fromiter(map(_word_hash, _WORD.findall(text)), dtype=np.uint64)
    if not words.size:
        return np.empty(0, dtype=np.uint32)
    count = max(1, words.size - SHINGLE_WORDS + 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, words.size)):
        mixed = (mixed + words[offset : offset + count]) * np.uint64(_MULTIPLIER)
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Size of the intersection over size of the union; 0 when both are empty."""
    common = np.intersect1d(one, other, assume_unique=True).size
    union = one.size + other.size - common
    return common / union if union else 0.0


@lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    """The same in every process, which Python's own hash is not."""
    return zlib.crc32(word.encode("utf-8"))


def _sketch(own: Shingles, blank: MinHash) -> MinHash:
    sketch = blank.copy()
    for start in range(0, own.size, _BATCH_SHINGLES):
        sketch.update_batch(own[start : start + _BATCH_SHINGLES].tolist())
    return sketch
