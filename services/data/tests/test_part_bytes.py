import errno
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace_data.domain import Content
from millrace_data.part_bytes import PartBytes
from millrace_runtime.content import ContentStore
from millrace_runtime.errors import FailedPrecondition


@pytest.fixture(params=["local", "remote"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> PartBytes:
    """In a local directory, and in a store that is reached by an fsspec URL, as S3 is."""
    remote = f"memory://{uuid.uuid4().hex}"
    root = str(tmp_path / "data") if request.param == "local" else remote
    return PartBytes(ContentStore(root, tmp_path / "cache"), 1_000_000)


def put(parts: PartBytes, part_id: str, content: bytes) -> Content:
    with parts.staged("upload-1", [content]) as staged:
        uri = parts.put_in_place("upload-1", part_id, staged)
        return Content(uri, staged.digest, staged.size_bytes)


def test_what_goes_in_comes_out(parts: PartBytes) -> None:
    content = bytes(range(256)) * 3000
    assert b"".join(parts.read(put(parts, "part-1", content))) == content


def test_parts_of_equal_bytes_are_two(parts: PartBytes) -> None:
    one, other = put(parts, "part-1", b"x"), put(parts, "part-2", b"x")
    parts.remove_part("upload-1", "part-1")
    with pytest.raises(FailedPrecondition):
        parts.read(one)
    assert b"".join(parts.read(other)) == b"x"


def test_an_upload_goes_at_once_and_twice_is_once(parts: PartBytes) -> None:
    kept = [put(parts, f"part-{number}", b"x") for number in range(3)]
    for _ in range(2):
        parts.remove("upload-1")
        parts.remove_part("upload-1", "part-1")
    for content in kept:
        with pytest.raises(FailedPrecondition):
            parts.read(content)


def test_what_nobody_knows_of_is_swept_when_it_is_old(parts: PartBytes, tmp_path: Path) -> None:
    put(parts, "part-1", b"x")
    parts.sweep(older_than_seconds=60)
    assert list(tmp_path.rglob("part-1"))
    parts.sweep(older_than_seconds=-60)
    assert list(tmp_path.rglob("part-1")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_of_the_disk_leaves_nothing_behind(
    parts: PartBytes, tmp_path: Path, number: int
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise OSError(number, "no room")

    with pytest.raises(OSError, match="no room"), parts.staged("upload-1", chunks()):
        pass
    assert list(tmp_path.rglob(".tmp-*")) == []
