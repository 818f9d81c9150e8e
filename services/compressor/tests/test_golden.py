"""Golden prompts: the same ones for every checkpoint of a run, scored by the checkpoint itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from millrace_compressor.jobs import golden as job
from millrace_runtime import golden
from millrace_runtime.golden import GoldenError
from millrace_runtime.parity import Probe, Report

VOCABULARY = 50
WINDOWS = np.arange(40 * 128).reshape(40, 128) * 7 % VOCABULARY
TURNS = [{"role": "user", "content": "Hello"}]


class Uniform:
    """A checkpoint that has no preference, but may say nothing of one token."""

    def __init__(self, impossible: int | None = None) -> None:
        self._impossible = impossible

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        made = np.zeros((*ids.shape, VOCABULARY), np.float32)
        if self._impossible is not None:
            made[..., self._impossible] = -np.inf
        return made


def written(folder: Path, windows: NDArray[np.int64] = WINDOWS, **model: int) -> list[str]:
    job.write(folder, folder, windows, Uniform(**model))
    return [prompt.name for prompt in golden.read(folder)]


def test_windows_are_cut_in_a_prompt_and_what_followed(tmp_path: Path) -> None:
    written(tmp_path)
    prompts = golden.read(tmp_path)
    assert len(prompts) == job.WINDOWS
    stream = WINDOWS.reshape(-1).tolist()
    for prompt in prompts:
        ids = [*prompt.prompt_ids, *prompt.continuation_ids]
        assert any(ids == stream[at : at + 64] for at in range(0, len(stream), 64))
        assert len(prompt.prompt_ids) == len(prompt.continuation_ids) == 32
        assert prompt.original == pytest.approx(-np.log(VOCABULARY), abs=1e-5)


def test_another_order_of_the_same_data_gives_the_same_prompts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert written(tmp_path / "a") == written(tmp_path / "b", WINDOWS[::-1])


def test_short_windows_are_used_as_they_are(tmp_path: Path) -> None:
    written(tmp_path, WINDOWS[:2, :9])
    assert [len(p.continuation_ids) for p in golden.read(tmp_path)] == [5, 5]


def test_conversations_of_a_tuned_model_come_first_and_refused_ones_not_at_all(
    tmp_path: Path,
) -> None:
    probes = [
        Probe("refused", TURNS),
        Probe("cut", TURNS, (), "sha256:0", [1, 2, 3], 3),
        Probe("user", TURNS, (), "sha256:0", [1, 2, 3, 4, 5], 3),
        Probe("heldout_1", token_ids=[1, 2, 3], prompt_tokens=3),
    ]
    Report({}, probes).write(tmp_path)
    names = written(tmp_path)
    assert names[0] == "chat/user"
    assert {name.partition("/")[0] for name in names[1:]} == {"golden"}
    first = golden.read(tmp_path)[0]
    assert (first.prompt_ids, first.continuation_ids) == ([1, 2, 3], [4, 5])
    assert first.messages == TURNS


def test_what_the_checkpoint_cannot_say_is_no_number(tmp_path: Path) -> None:
    written(tmp_path, np.full((3, 64), 9), impossible=9)
    assert [prompt.original for prompt in golden.read(tmp_path)] == [None]
    assert "Infinity" not in (tmp_path / golden.FILE_NAME).read_text()


def test_an_artifact_without_them_has_none_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    assert golden.read(tmp_path) == []
    (tmp_path / golden.FILE_NAME).write_text(json.dumps({"prompts": [{"name": 1}]}))
    with pytest.raises(GoldenError, match=r"golden\.json cannot be read"):
        golden.read(tmp_path)
