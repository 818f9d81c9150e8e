"""The data that a base was trained on: shards of tokens, as the data service packs them.

``train-*.npy`` and ``heldout-*.npy`` are streams of shape (tokens,), with an end-of-text after
each document. What a tuned model leaves behind (``evaluation/``) has held-out tokens only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.specification import Spec

Windows = NDArray[np.int64]  # (windows, tokens)


def directory(spec: Spec) -> Path | None:
    """Where the base's data is, every byte verified; None: it is not known.

    Raises:
        JobError: BASE_DATA_INVALID, INVALID_SPEC.
    """
    path, digest = spec.base_evaluation_path, spec.base_evaluation_digest
    if path is None:
        return None
    if digest is None:
        raise JobError("INVALID_SPEC", "base_evaluation_digest must be given with the path")
    try:
        manifest.verify(path, digest)
    except manifest.ManifestError as error:
        message = f"the data that the base was trained on is not what it was: {error}; restore it"
        raise JobError("BASE_DATA_INVALID", message) from error
    return path


def heldout_windows(path: Path, length: int, tokens: int) -> Windows | None:
    """The first held-out tokens, ``tokens`` at most; None: there are not even two.

    The shards lie in ``path`` or in its ``evaluation/``, where the compressor looks for them too.
    """
    shards = sorted(path.glob("heldout-*.npy")) or sorted(path.glob("evaluation/heldout-*.npy"))
    if not shards:
        return None
    stream = np.concatenate([shard[:tokens] for shard in _mapped(shards)])[:tokens]
    length = min(length, len(stream))
    if length < 2:  # one to see and one to predict
        return None
    count = len(stream) // length
    return stream[: count * length].reshape(count, length).astype(np.int64)


def training_windows(path: Path, length: int, count: int, seed: int) -> Windows | None:
    """``count`` windows that are drawn evenly from the training shards, never from those that
    are held out; None: there is no whole window. All come again where there are too few."""
    shards = _mapped(sorted(path.glob("train-*.npy")))
    firsts = np.cumsum([0, *(len(shard) // length for shard in shards)])
    total = int(firsts[-1])
    if not total:
        return None
    random = np.random.default_rng(seed)
    drawn = np.resize(random.choice(total, min(count, total), replace=False), count)
    return np.stack([_window(shards, firsts, int(place), length) for place in drawn])


def _mapped(shards: Sequence[Path]) -> list[NDArray[Any]]:
    return [np.load(shard, mmap_mode="r", allow_pickle=False) for shard in shards]


def _window(
    shards: Sequence[NDArray[Any]], firsts: NDArray[np.int64], place: int, length: int
) -> NDArray[np.int64]:
    shard = int(np.searchsorted(firsts, place, side="right")) - 1
    start = (place - int(firsts[shard])) * length
    tokens: NDArray[np.int64] = shards[shard][start : start + length].astype(np.int64)
    return tokens
