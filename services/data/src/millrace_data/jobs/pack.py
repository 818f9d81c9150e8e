"""Token shards: 1-D arrays in numpy's ``.npy`` format, read with ``mmap_mode="r"``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class ShardWriter:
    """Writes ``{prefix}-00000.npy`` and on, each of ``shard_tokens`` tokens, the last of fewer.

    A document may run over from one shard into the next: the shards, joined, are the stream.
    """

    def __init__(self, directory: Path, prefix: str, dtype: DTypeLike, shard_tokens: int) -> None:
        self._directory = directory
        self._prefix = prefix
        self._buffer = np.empty(shard_tokens, dtype=dtype)
        self._filled = 0
        self._shards = 0
        self.tokens = 0

    def append(self, tokens: NDArray[Any]) -> None:
        """Add ``tokens``, shape (count,), to the stream."""
        self.tokens += tokens.size
        while tokens.size:
            room = min(self._buffer.size - self._filled, tokens.size)
            self._buffer[self._filled : self._filled + room] = tokens[:room]
            self._filled += room
            tokens = tokens[room:]
            if self._filled == self._buffer.size:
                self._write()

    def close(self) -> None:
        """Write what is left."""
        if self._filled:
            self._write()

    def _write(self) -> None:
        path = self._directory / f"{self._prefix}-{self._shards:05d}.npy"
        np.save(path, self._buffer[: self._filled], allow_pickle=False)
        self._shards += 1
        self._filled = 0


def pack(documents: Iterable[NDArray[Any]], separator: int, writer: ShardWriter) -> tuple[int, int]:
    """Write each document and the ``separator`` after it; return (tokens, documents) written."""
    end = np.array([separator])
    count = 0
    for tokens in documents:
        writer.append(tokens)
        writer.append(end)
        count += 1
    writer.close()
    return writer.tokens, count


def read_stream(directory: Path, prefix: str) -> NDArray[Any]:
    """All shards of ``prefix`` joined in memory, shape (tokens,)."""
    shards = [np.load(p, allow_pickle=False) for p in sorted(directory.glob(f"{prefix}-*.npy"))]
    return np.concatenate(shards)
