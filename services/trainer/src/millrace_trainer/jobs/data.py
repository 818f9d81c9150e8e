"""The order of the training data, as a function of (seed, epoch, position) and nothing else.

So a run that resumes at a step sees exactly what it would have seen, and no state of a data
loader has to be kept.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from millrace_runtime.jobs import JobError


class Windows:
    """Sequences of ``length`` tokens and the one that follows each, cut from packed shards.

    Window ``i`` of a shard covers tokens ``[i * length, (i + 1) * length]``.
    """

    def __init__(self, shards: list[Path], length: int, seed: int) -> None:
        self._shards = [np.load(shard, mmap_mode="r", allow_pickle=False) for shard in shards]
        self._length = length
        self._seed = seed
        counts = [max(0, (len(shard) - 1) // length) for shard in self._shards]
        self._first = np.cumsum([0, *counts])
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        if len(self) == 0:
            tokens = sum(len(shard) for shard in self._shards)
            raise JobError(
                "DATASET_TOO_SMALL",
                f"{tokens} tokens hold no sequence of {length} and the one that follows it; "
                "use a larger dataset or a shorter context_length",
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def at(self, position: int, count: int) -> torch.Tensor:
        """The sequences at ``position`` and after, in training order: int64 (count, length + 1)."""
        return torch.from_numpy(np.stack([self._at(position + i) for i in range(count)]))

    def head(self, count: int) -> torch.Tensor:
        """The first sequences, in their own order: int64 (at most count, length + 1)."""
        return torch.from_numpy(np.stack([self._window(i) for i in range(min(count, len(self)))]))

    def _at(self, position: int) -> NDArray[np.int64]:
        epoch, index = divmod(position, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            self._epoch = epoch
        return self._window(int(self._order[index]))

    def _window(self, window: int) -> NDArray[np.int64]:
        shard = int(np.searchsorted(self._first, window, side="right")) - 1
        start = (window - int(self._first[shard])) * self._length
        tokens: NDArray[np.int64] = self._shards[shard][start : start + self._length + 1].astype(
            np.int64
        )
        return tokens
