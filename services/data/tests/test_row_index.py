"""An index of rows: what is in it is found, and nothing else is."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_data.row_index import open_index, write_index
from millrace_examples.row_hash import HASH_BYTES

HASHES = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)


@given(st.lists(HASHES, max_size=40), HASHES, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_found(hashes: list[bytes], other: bytes, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        assert write_index(path, hashes, at_once) == len(set(hashes))
        assert path.read_bytes() == b"".join(sorted(set(hashes)))
        assert [entry.name for entry in Path(folder).iterdir()] == ["rows"]
        with open_index(path) as index:
            assert all(hash in index for hash in hashes)
            assert (other in index) == (other in hashes)
            assert [index[at] for at in range(len(index))] == sorted(set(hashes))
