"""An index of rows: their hashes (32 bytes each), distinct, sorted, in one file.

It is written in bounded memory and looked into without being read: 100 million rows are 3.2 GB on
disk, and 27 places looked at for each question.
"""

import mmap
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from itertools import groupby, islice
from pathlib import Path

from millrace_examples.row_hash import HASH_BYTES
from millrace_runtime.manifest import TEMPORARY_PREFIX

TRAIN_FILE = "rows-train.sha256"
HELDOUT_FILE = "rows-heldout.sha256"
_SORTED_AT_ONCE = 1_000_000
_READ_BYTES = HASH_BYTES * 4096


def write_index(path: Path, hashes: Iterable[bytes], sorted_at_once: int = _SORTED_AT_ONCE) -> int:
    """Write the index of ``hashes``, in any order, to the new file ``path``; how many it holds.

    The same hashes give the same bytes. At most ``sorted_at_once`` of them are in memory.
    """
    count = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY_PREFIX) as folder:
        runs = _sorted_runs(Path(folder), iter(hashes), sorted_at_once)
        with path.open("xb") as stream:
            for hash, _ in groupby(merge(*map(_records, runs))):
                stream.write(hash)
                count += 1
    return count


def _sorted_runs(folder: Path, hashes: Iterator[bytes], size: int) -> list[Path]:
    runs: list[Path] = []
    while run := sorted(islice(hashes, size)):
        path = folder / str(len(runs))
        path.write_bytes(b"".join(run))
        runs.append(path)
    return runs


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            for start in range(0, len(block), HASH_BYTES):
                yield block[start : start + HASH_BYTES]


class RowIndex:
    """The hashes of an index, in their order; ``in`` is a binary search."""

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content) // HASH_BYTES

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._content[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def __contains__(self, hash: bytes) -> bool:
        at = bisect_left(self, hash)
        return at < len(self) and self[at] == hash


@contextmanager
def open_index(path: Path) -> Iterator[RowIndex]:
    """An index that ``write_index`` wrote, for as long as the block lasts."""
    with path.open("rb") as stream:
        if not path.stat().st_size:  # an empty file cannot be mapped
            yield RowIndex(b"")
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield RowIndex(content)
