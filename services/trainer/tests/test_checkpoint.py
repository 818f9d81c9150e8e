"""The directory of a run: what is taken from it, and what is passed over."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_trainer.jobs import random_numbers
from millrace_trainer.jobs.checkpoint import Checkpoints, load_state

SPECIFICATION = "sha256:" + "ab" * 32


class FakeEngine:
    """Writes a model of one file; ``weight`` is all that it learned."""

    def __init__(self, weight: str = "learned") -> None:
        self.module = self
        self._weight = weight

    def save_pretrained(self, folder: Path, safe_serialization: bool) -> None:
        assert safe_serialization
        folder.mkdir()
        (folder / "model.safetensors").write_text(self._weight)

    def save_checkpoint(self, folder: Path, tag: str, client_state: dict[str, int]) -> None:
        (folder / tag).write_text(f"{self._weight} {client_state}")
        (folder / "progress.json").write_text(json.dumps(client_state))

    def load_checkpoint(self, folder: Path, tag: str) -> tuple[str, dict[str, int]]:
        return str(folder / tag), json.loads((folder / "progress.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def saved(output: Path, tokenizer: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(output, SPECIFICATION)
    checkpoints.open()
    for step in steps:
        checkpoints.save_state(FakeEngine(), {"step": step})
        checkpoints.save(FakeEngine(), tokenizer, {"step": step})
    checkpoints.close()
    return checkpoints


def test_checkpoints_are_kept_and_only_the_newest_state(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = saved(tmp_path / "run", tokenizer, 10, 20)
    assert [found.metadata["step"] for found in checkpoints.committed()] == [10, 20]
    assert [path.name for path in (tmp_path / "run" / "resume").iterdir()] == ["00000020"]
    state = checkpoints.newest_state()
    assert state is not None
    assert state.metadata["step"] == 20


def drawn() -> list[float]:
    """A number of each source; Python's and numpy's keep half a normal pair for the next."""
    return [
        random.gauss(),
        random.random(),
        float(np.random.standard_normal()),
        float(np.random.random()),
        float(torch.rand(())),
    ]


def test_all_random_numbers_go_on_where_the_state_was_saved(
    tmp_path: Path, tokenizer: Path
) -> None:
    checkpoints = saved(tmp_path / "run", tokenizer)
    random_numbers.seed(7)
    drawn()
    checkpoints.save_state(FakeEngine(), {"step": 10})
    expected = drawn(), drawn()
    random_numbers.seed(8)
    state = checkpoints.newest_state()
    assert state is not None
    assert load_state(FakeEngine(), state) == {"step": 10}
    assert (drawn(), drawn()) == expected


def test_a_damaged_checkpoint_is_passed_over_and_can_be_made_again(
    tmp_path: Path, tokenizer: Path
) -> None:
    checkpoints = saved(tmp_path / "run", tokenizer, 10, 20)
    whole = checkpoints.at(10)
    assert whole is not None
    (whole.path / "model" / "model.safetensors").write_text("bit rot")
    assert checkpoints.at(10) is None
    assert [found.metadata["step"] for found in checkpoints.committed()] == [20]
    assert checkpoints.save(FakeEngine(), tokenizer, {"step": 10}) == whole


def test_a_whole_checkpoint_stands(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = saved(tmp_path / "run", tokenizer, 10)
    first = checkpoints.at(10)
    assert checkpoints.save(FakeEngine("otherwise"), tokenizer, {"step": 10}) == first


def test_a_damaged_state_is_not_resumed_from_and_makes_way(tmp_path: Path, tokenizer: Path) -> None:
    checkpoints = saved(tmp_path / "run", tokenizer, 10)
    (tmp_path / "run" / "resume" / "00000010" / "state").write_text("bit rot")
    assert checkpoints.newest_state() is None
    checkpoints.save_state(FakeEngine(), {"step": 10})
    assert checkpoints.newest_state() is not None


def test_a_directory_serves_one_run(tmp_path: Path, tokenizer: Path) -> None:
    saved(tmp_path / "run", tokenizer, 10)
    other = Checkpoints(tmp_path / "run", "sha256:" + "cd" * 32)
    for look in (other.committed, other.newest_state):
        with pytest.raises(JobError, match="a directory of its own") as raised:
            look()
        assert raised.value.reason == "OUTPUT_DIRECTORY_IN_USE"


def test_what_a_killed_job_left_unfinished_is_swept(tmp_path: Path, tokenizer: Path) -> None:
    saved(tmp_path / "run", tokenizer, 10)
    for place in (tmp_path / "run" / "step-00000020", tmp_path / "run" / "resume" / "00000020"):
        (manifest.temporary_sibling(place) / "half").write_text("…")
    saved(tmp_path / "run", tokenizer)
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not [name for name in names if name.startswith(manifest.TEMPORARY_PREFIX)]
    assert {"step-00000010", "00000010"} <= names


def test_two_jobs_never_write_to_one_directory(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path / "run", SPECIFICATION)
    second = Checkpoints(tmp_path / "run", SPECIFICATION)
    first.open()
    waiting = threading.Thread(target=second.open)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    first.close()
    waiting.join(10)
    assert not waiting.is_alive()
    second.close()
