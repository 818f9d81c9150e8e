"""What an embedding is asked for with, how its inputs are put together, and how it is made.

A vector is the mean of the last hidden state over an input's tokens, in unit length.

Pure and free of imports from this package, because the file is copied beside ``model.py``
into the Triton repository.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np

# As OpenAI has them: https://platform.openai.com/docs/api-reference/embeddings/create
MOST_INPUTS = 2048
MOST_TOKENS = 300_000
# More at once are no faster on a CPU; eight texts of 8 tokens are twice as fast as one by one.
PIECE_TOKENS = 256
# What may stand beside it: a vector is no answer, neither long nor in pieces.
_BESIDE = {"embed", "max_tokens", "stream"}

_Whole = TypeVar("_Whole", str, Any)


class Refused(ValueError):
    """The inputs are not what can be embedded."""


@dataclass(frozen=True)
class EmbeddingRequest:
    """``sizes`` of the inputs, in characters or tokens; ``dimensions`` is None for all."""

    sizes: tuple[int, ...] | None = None
    dimensions: int | None = None


def parse_embedding(document: bytes) -> EmbeddingRequest | None:
    """What the sampling parameters say of it; None when they do not ask for one.

    Raises:
        ValueError: naming what is wrong.
    """
    if b'"embed"' not in document:
        return None
    try:
        given = json.loads(document)
    except ValueError:
        return None  # who reads the other parameters says so
    asked = given.get("embed") if isinstance(given, dict) else None
    if asked is None or asked is False:
        return None
    other = {key for key, value in given.items() if value is not None} - _BESIDE
    if other:
        raise ValueError(f"{min(other)} cannot be had together with embed")
    if asked is True:
        return EmbeddingRequest()
    if not isinstance(asked, dict) or asked.keys() - {"sizes", "dimensions"}:
        raise ValueError("embed must be true, or an object of sizes and dimensions")
    return EmbeddingRequest(_sizes(asked.get("sizes")), _dimensions(asked.get("dimensions")))


def _sizes(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(map(_is_count, given)):
        raise ValueError("embed.sizes must be a list of integers that are at least 1")
    if not 1 <= len(given) <= MOST_INPUTS:
        raise ValueError(f"embed.sizes must be of 1 to {MOST_INPUTS} inputs, not {len(given)}")
    return tuple(given)


def _dimensions(given: Any) -> int | None:
    if given is None:
        return None
    if not _is_count(given):
        raise ValueError("dimensions must be an integer that is at least 1")
    return int(given)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def split(whole: _Whole, sizes: Sequence[int] | None) -> list[_Whole]:
    """The inputs, which ``whole`` has one after the other: a text, or an array of tokens.

    Raises:
        ValueError: it is empty, or the sizes are not its own.
    """
    sizes = (len(whole),) if sizes is None else sizes
    if not len(whole) or sum(sizes) != len(whole):
        raise ValueError(f"the sizes of embed make {sum(sizes)}, but the prompt has {len(whole)}")
    return [whole[begin:end] for begin, end in pairwise(accumulate(sizes, initial=0))]


def check_lengths(lengths: Sequence[int], context_tokens: int) -> None:
    """Check how many tokens the inputs have.

    Raises:
        Refused: saying which limit is passed.
    """
    for index, length in enumerate(lengths):
        if length > context_tokens:
            raise Refused(f"input {index} has {length} tokens, but the context is {context_tokens}")
        if not length:
            raise Refused(f"input {index} has no tokens")
    if (total := sum(lengths)) > MOST_TOKENS:
        raise Refused(f"the inputs have {total} tokens, but at most {MOST_TOKENS} fit a request")


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """The inputs' indices, those together that are computed together: the shortest first.

    A batch is as wide as its longest, and has at most ``PIECE_TOKENS`` with its padding; a longer
    input is alone.
    """
    found: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found[-1] and (len(found[-1]) + 1) * lengths[index] > PIECE_TOKENS:
            found.append([])
        found[-1].append(index)
    return found


def padded(sequences: Sequence[Any]) -> Any:
    """Token ids, int64 (sequences, longest): a causal model's states do not see what follows."""
    rows = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, tokens in zip(rows, sequences, strict=True):
        row[: len(tokens)] = tokens
    return rows


class Means:
    """Means of hidden states, which come piece by piece.

    Args:
        lengths: tokens of the sequences; what comes beyond them is padding.
    """

    def __init__(self, lengths: Sequence[int], size: int) -> None:
        self._lengths = lengths
        self._sums = np.zeros((len(lengths), size))
        self._seen = 0

    def add(self, hidden: Any) -> None:
        """``hidden`` is float32 (sequences, tokens, size), after what was added before."""
        for sums, states, length in zip(self._sums, hidden, self._lengths, strict=True):
            sums += states[: max(0, length - self._seen)].sum(axis=0, dtype=np.float64)
        self._seen += hidden.shape[1]

    def vectors(self, dimensions: int | None) -> Any:
        """Their first ``dimensions``, in unit length: float32 (sequences, dimensions).

        Raises:
            ValueError: the model's values are no numbers.
        """
        kept = (self._sums / np.array(self._lengths)[:, None])[:, :dimensions]
        norms = np.linalg.norm(kept, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise ValueError("the model's hidden states are not finite")
        # A vector of zeros has no direction, and stays one.
        return (kept / np.where(norms == 0, 1, norms)).astype(np.float32)
