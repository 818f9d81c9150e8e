import os
from pathlib import Path

from millrace_mesh.retention import remove_oldest


def fill(directory: Path, *names: str) -> None:
    """Files of 100 bytes, each changed later than the one before."""
    for index, name in enumerate(names):
        path = directory / name
        path.write_bytes(b"x" * 100)
        os.utime(path, (index, index))


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path):
    fill(tmp_path, "c.jsonl", "a.jsonl", "b.jsonl", "notes.txt")
    assert remove_oldest(tmp_path, 250) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "notes.txt"]


def test_what_fits_stays(tmp_path: Path):
    fill(tmp_path, "a.jsonl")
    assert remove_oldest(tmp_path, 100) == 0
    assert (tmp_path / "a.jsonl").exists()
