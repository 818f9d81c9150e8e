from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_runtime import manifest
from millrace_runtime.manifest import ManifestMismatch, ManifestMissing


def committed(folder: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    target = folder / "content"
    temporary = manifest.temporary_sibling(target)
    for name, content in files.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_bytes(content)
    return target, manifest.commit(temporary, target, "test", {"answer": 42})


def test_what_was_committed_verifies(tmp_path: Path) -> None:
    target, digest = committed(tmp_path, {"a": b"1", "deep/b": b"22"})
    read = manifest.verify(target, digest)
    assert [entry.path for entry in read.files] == ["a", "deep/b"]
    assert read.size_bytes == 3
    assert read.metadata == {"answer": 42}
    assert list(tmp_path.glob(f"{manifest.TEMPORARY_PREFIX}*")) == []


def test_the_same_content_has_the_same_digest_and_may_be_committed_twice(tmp_path: Path) -> None:
    _, first = committed(tmp_path, {"a": b"1"})
    _, second = committed(tmp_path, {"a": b"1"})
    assert first == second
    assert list(tmp_path.glob(f"{manifest.TEMPORARY_PREFIX}*")) == []


def test_other_content_under_the_same_name_is_refused(tmp_path: Path) -> None:
    committed(tmp_path, {"a": b"1"})
    with pytest.raises(ManifestMismatch):
        committed(tmp_path, {"a": b"2"})


@given(st.data())
def test_every_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = {"a": b"weights", "deep/b": b"tokenizer"}
    target, digest = committed(tmp_path_factory.mktemp("content"), files)
    path = target / data.draw(st.sampled_from([*files, manifest.MANIFEST_NAME]))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ManifestMismatch):
        manifest.verify(target, digest)


@pytest.mark.parametrize("damage", ["truncate", "remove", "add", "swap"])
def test_files_that_are_not_as_committed_are_found(tmp_path: Path, damage: str) -> None:
    target, digest = committed(tmp_path, {"a": b"first", "b": b"other"})
    if damage == "truncate":
        (target / "a").write_bytes(b"fir")
    elif damage == "remove":
        (target / "a").unlink()
    elif damage == "add":
        (target / "c").write_bytes(b"")
    else:
        (target / "a").write_bytes(b"other")
        (target / "b").write_bytes(b"first")
    with pytest.raises(ManifestMismatch):
        manifest.verify(target, digest)


@pytest.mark.parametrize("name", ["a", manifest.MANIFEST_NAME, "deep"])
def test_a_link_is_refused_though_it_leads_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    target, digest = committed(tmp_path, {"a": b"first", "deep/b": b"other"})
    (target / name).rename(tmp_path / "elsewhere")
    (target / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestMismatch, match=name):
        manifest.verify(target, digest)


def test_what_differs_is_said(tmp_path: Path) -> None:
    target, digest = committed(tmp_path, {"a": b"first", "b": b"other"})
    (target / "a").write_bytes(b"fir")
    with pytest.raises(ManifestMismatch, match=r"a differs .* it has 3 bytes, not 5"):
        manifest.verify(target, digest)


def test_a_directory_that_was_never_committed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestMissing):
        manifest.verify(tmp_path, "sha256:" + "0" * 64)
