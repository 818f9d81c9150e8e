import errno
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_data.domain import Content
from millrace_data.file_bytes import FileBytes
from millrace_runtime.content import ContentStore
from millrace_runtime.manifest import sha256_bytes

ROOTS = ["local", "remote"]


@pytest.fixture(params=ROOTS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> FileBytes:
    """In a local directory, and in a store that is reached by an fsspec URL, as S3 is."""
    remote = f"memory://{uuid.uuid4().hex}"
    root = str(tmp_path / "data") if request.param == "local" else remote
    return FileBytes(ContentStore(root, tmp_path / "cache"), 1_000_000)


def put(stored: FileBytes, chunks: list[bytes]) -> Content:
    with stored.staged(chunks) as staged:
        return Content(stored.put_in_place(staged), staged.digest, staged.size_bytes)


@pytest.mark.parametrize("content", [b"x", bytes(range(256)) * 3000])
def test_what_goes_in_comes_out(stored: FileBytes, content: bytes) -> None:
    kept = put(stored, [content[:100], content[100:]])
    assert kept.digest == sha256_bytes(content)
    assert kept.size_bytes == len(content)
    assert b"".join(stored.read(kept)) == content


def test_removing_twice_is_once(stored: FileBytes) -> None:
    kept = put(stored, [b"content"])
    stored.remove(kept.digest)
    stored.remove(kept.digest)


def test_bytes_not_put_in_place_are_swept(stored: FileBytes) -> None:
    with stored.staged([b"content"]) as staged:
        assert staged.path.read_bytes() == b"content"
        stored.sweep(older_than_seconds=60)
        assert staged.path.exists()
        stored.sweep(older_than_seconds=-60)
        assert not staged.path.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_of_the_disk_leaves_nothing_behind(
    stored: FileBytes, tmp_path: Path, number: int
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise OSError(number, "no room")

    with pytest.raises(OSError, match="no room"), stored.staged(chunks()):
        pass
    assert list(tmp_path.rglob(".tmp-*")) == []


@settings(deadline=None)  # the disk may be slow
@given(chunks=st.lists(st.binary(max_size=50), min_size=1, max_size=10).filter(any))
def test_the_digest_does_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    kept = put(FileBytes(ContentStore(str(folder), folder / "cache"), 10_000), chunks)
    assert kept.digest == sha256_bytes(b"".join(chunks))
