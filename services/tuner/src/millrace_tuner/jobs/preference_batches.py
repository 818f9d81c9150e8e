"""What a preference trainer's forward pass gets: padded token ids, and masks of what is learned.

The forms are those of TRL's own collators for ready ids, but that a mask is given with the ids:
a tool's reply between two messages of an answer is not learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.utils.rnn import pad_sequence

from millrace_tuner.jobs.preference_examples import Compared, Verdict

Row = dict[str, Any]


def compared_row(example: Compared) -> Row:
    return {
        "preferred_ids": example.preferred.token_ids,
        "preferred_mask": example.preferred.is_learned,
        "rejected_ids": example.rejected.token_ids,
        "rejected_mask": example.rejected.is_learned,
    }


def judged_row(example: Verdict) -> Row:
    return {
        "ids": example.answer.token_ids,
        "mask": example.answer.is_learned,
        "label": example.is_good,
    }


@dataclass(frozen=True)
class ComparedCollator:
    """All preferred answers first, then all rejected ones; shapes (2 * rows, tokens)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        ids = [row["preferred_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        masks = [row["preferred_mask"] for row in rows] + [row["rejected_mask"] for row in rows]
        return _padded(ids, masks, self.pad_token_id)


@dataclass(frozen=True)
class JudgedCollator:
    """Answers, and each prompt with the answer to the one before it; shapes (rows, tokens).

    From the mismatched pairs KTO estimates how far the model has moved altogether (section 4.2
    of arXiv:2402.01306). They are made here, so that a batch may hold any examples, and are cut
    to ``maximum_tokens``.
    """

    pad_token_id: int
    maximum_tokens: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        ids, masks = [row["ids"] for row in rows], [row["mask"] for row in rows]
        batch = _padded(ids, masks, self.pad_token_id)
        shifted = [_with_answer_of(row, rows[place - 1]) for place, row in enumerate(rows)]
        ids = [ids[: self.maximum_tokens] for ids, _ in shifted]
        masks = [mask[: self.maximum_tokens] for _, mask in shifted]
        mismatched = _padded(ids, masks, self.pad_token_id)
        batch |= {f"KL_{name}": tensor for name, tensor in mismatched.items()}
        batch["label"] = torch.tensor([row["label"] for row in rows])
        return batch


def _with_answer_of(row: Row, other: Row) -> tuple[NDArray[Any], NDArray[Any]]:
    prompt, answer = int(np.argmax(row["mask"])), int(np.argmax(other["mask"]))
    ids = np.concatenate((row["ids"][:prompt], other["ids"][answer:]))
    return ids, np.concatenate((row["mask"][:prompt], other["mask"][answer:]))


def _padded(
    ids: Sequence[ArrayLike], masks: Sequence[ArrayLike], pad_token_id: int
) -> dict[str, torch.Tensor]:
    tokens = [torch.from_numpy(np.asarray(row, dtype=np.int64)) for row in ids]
    learned = [torch.from_numpy(np.asarray(row, dtype=np.int64)) for row in masks]
    real = [torch.ones_like(row) for row in tokens]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(real, batch_first=True),
        "completion_mask": pad_sequence(learned, batch_first=True),
    }


def in_batches(examples: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Neighbours in length share a batch, so that little of it is padding."""
    ordered = sorted(examples, key=lambda example: (example.longest_tokens, example.digest))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
