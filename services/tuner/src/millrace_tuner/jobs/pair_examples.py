"""From pairs of texts to the token ids that an encoder reads and that a decoder learns."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from millrace_examples.kinds import Pair
from millrace_tuner.jobs import examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAIRS_AT_ONCE = 200


@dataclass(frozen=True, eq=False)
class PairExample:
    """One pair, each side through its end-of-text; shapes (tokens,), int32."""

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    was_truncated: bool

    @property
    def tokens(self) -> int:
        return len(self.source) + len(self.target)

    @property
    def digest(self) -> str:
        """Identifies the content, whatever its place in the file."""
        source = hashlib.sha256(self.source.tobytes()).digest()
        return hashlib.sha256(source + self.target.tobytes()).hexdigest()


@dataclass(frozen=True)
class Material:
    """What there is to learn and to measure by, and how many pairs had to be cut."""

    training: Sequence[PairExample]
    heldout: Sequence[PairExample]
    heldout_source: str
    truncated: int


def prepare(
    training: Sequence[Pair],
    validation: Sequence[Pair] | None,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int,
    on_progress: Callable[[int, int], None],
) -> Material:
    """Tokenise both files, ``limit`` tokens a side at most.

    Raises:
        JobError: TOO_FEW_EXAMPLES.
    """
    rows = [*training, *(validation or ())]
    encoded: list[PairExample] = []
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        encoded += encode(rows[start : start + _PAIRS_AT_ONCE], tokenizer, limit)
        on_progress(len(encoded), len(rows))
    truncated = sum(example.was_truncated for example in encoded)
    learned, measured = encoded[: len(training)], encoded[len(training) :]
    if validation is None:
        return Material(*examples.split(learned), "split", truncated)
    return Material(learned, measured, "validation_file", truncated)


def encode(
    rows: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", limit: int
) -> list[PairExample]:
    """With the marks that the tokenizer puts around a text, such as T5's end; what is too long
    keeps them."""
    sources = _ids(tokenizer, [row.source for row in rows], None, is_target=False)
    targets = _ids(tokenizer, [row.target for row in rows], None, is_target=True)
    too_long = [len(s) > limit or len(t) > limit for s, t in zip(sources, targets, strict=True)]
    if any(too_long):
        sources = _ids(tokenizer, [row.source for row in rows], limit, is_target=False)
        targets = _ids(tokenizer, [row.target for row in rows], limit, is_target=True)
    return [
        PairExample(np.asarray(source, np.int32), np.asarray(target, np.int32), was_cut)
        for source, target, was_cut in zip(sources, targets, too_long, strict=True)
    ]


def _ids(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], limit: int | None, *, is_target: bool
) -> list[list[int]]:
    given = {"text_target" if is_target else "text": texts}
    found = tokenizer(**given, truncation=limit is not None, max_length=limit, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids
