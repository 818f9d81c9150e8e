"""What the compressor observes activations on: rows of the training file, kept with a checkpoint.

The training file itself stays where it is: a checkpoint can be compressed where that is not.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAXIMUM_TOKENS = 65_536  # 128 windows of 512
_FILE = Path("calibration", "train-00000.npy")

Ids = NDArray[np.int32]  # (tokens,)


@dataclass(frozen=True)
class Rows:
    """Token ids of each example, as the model learns from them and as it is judged by them."""

    training: Sequence[Ids]
    heldout: Sequence[Ids]


def write(directory: Path, rows: Rows, *, seed: int, separator_id: int, dtype: DTypeLike) -> None:
    """Write ``calibration/train-00000.npy`` to a checkpoint; nothing where no row is left."""
    found = stream(rows, seed, separator_id)
    if len(found):
        (directory / _FILE).parent.mkdir(parents=True)
        np.save(directory / _FILE, found.astype(dtype), allow_pickle=False)


def stream(rows: Rows, seed: int, separator_id: int, limit: int = MAXIMUM_TOKENS) -> NDArray[Any]:
    """Rows one after the other, each followed by the separator; shape (tokens,), at most ``limit``.

    Chosen by the hash of their ids and the seed, so that the same file and seed give the same
    bytes. What is also held out is left out, and equal rows are there once.
    """
    judging = {_key(ids, 0) for ids in rows.heldout}
    learned = {_key(ids, seed): ids for ids in rows.training if _key(ids, 0) not in judging}
    return np.concatenate([np.empty(0, np.int32), *_within(learned, separator_id, limit)])


def _within(learned: dict[bytes, Ids], separator_id: int, limit: int) -> Iterator[Ids]:
    left = limit
    for key in sorted(learned):
        ids = np.append(learned[key], np.int32(separator_id)).astype(np.int32)
        yield ids[:left]
        left -= len(ids)
        if left <= 0:
            return


def _key(ids: Ids, seed: int) -> bytes:
    # A seed may be any number that PyTorch takes.
    return hashlib.sha256(f"{seed}:".encode() + ids.astype(np.int32).tobytes()).digest()
