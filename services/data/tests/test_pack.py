import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace_data.jobs.pack import ShardWriter, pack, read_stream

SEPARATOR = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 60_000), max_size=30), min_size=1, max_size=10)


@given(DOCUMENTS, st.integers(1, 40))
def test_no_token_is_lost_added_or_moved(documents: list[list[int]], shard_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "train", np.uint16, shard_tokens)
        tokens, count = pack((np.array(d, np.uint16) for d in documents), SEPARATOR, writer)
        stream = read_stream(Path(folder), "train")
        sizes = [np.load(path).size for path in sorted(Path(folder).iterdir())]
    expected = [token for document in documents for token in (*document, SEPARATOR)]
    assert stream.tolist() == expected
    assert stream.dtype == np.uint16
    assert (tokens, count) == (len(expected), len(documents))
    assert all(size == shard_tokens for size in sizes[:-1])
    assert 0 < sizes[-1] <= shard_tokens


def test_shards_are_read_by_memory_map(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "heldout", np.uint32, 10)
    writer.append(np.arange(25, dtype=np.uint32))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"heldout-0000{n}.npy" for n in range(3)
    ]
    mapped = np.load(tmp_path / "heldout-00001.npy", mmap_mode="r", allow_pickle=False)
    assert mapped.tolist() == list(range(10, 20))
