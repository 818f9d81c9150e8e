"""The order of training data depends on (seed, epoch, position) alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from millrace_runtime.jobs import JobError
from millrace_trainer.jobs.data import Windows

LENGTH = 8
SHARDS = (100, 5, 41)  # tokens; hold 12, 0 and 5 windows
COUNT = 17


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    paths = [folder / f"train-{n:05d}.npy" for n in range(len(SHARDS))]
    for n, (path, tokens) in enumerate(zip(paths, SHARDS, strict=True)):
        np.save(path, np.arange(tokens, dtype=np.uint16) + 1000 * n)
    return paths


def starts(windows: Windows, position: int, count: int) -> list[int]:
    return windows.at(position, count)[:, 0].tolist()


def test_a_window_holds_its_tokens_and_the_one_that_follows(shards: list[Path]) -> None:
    windows = Windows(shards, LENGTH, seed=1)
    assert len(windows) == COUNT
    everything = windows.head(100)
    assert everything.shape == (COUNT, LENGTH + 1)
    assert everything.dtype == torch.int64
    assert everything[0].tolist() == list(range(9))
    assert everything[12].tolist() == list(range(2000, 2009))
    assert (everything[:, 1:] - everything[:, :-1] == 1).all()  # none crosses a shard


def test_an_epoch_takes_each_window_once_in_an_order_of_its_own(shards: list[Path]) -> None:
    windows = Windows(shards, LENGTH, seed=1)
    first, second = starts(windows, 0, COUNT), starts(windows, COUNT, COUNT)
    assert len(set(first)) == COUNT
    assert set(first) == set(second)
    assert first != second


def test_another_seed_is_another_order(shards: list[Path]) -> None:
    orders = {tuple(starts(Windows(shards, LENGTH, seed), 0, COUNT)) for seed in range(5)}
    assert len(orders) == 5


@given(position=st.integers(0, 5 * COUNT), count=st.integers(1, 2 * COUNT))
def test_what_lies_at_a_position_does_not_depend_on_the_way_there(
    shards: list[Path], position: int, count: int
) -> None:
    straight = Windows(shards, LENGTH, seed=3).at(position, count)
    wandering = Windows(shards, LENGTH, seed=3)
    for elsewhere in (position + 2 * COUNT, 0):
        wandering.at(elsewhere, 1)
    one_by_one = torch.cat([wandering.at(position + n, 1) for n in range(count)])
    assert torch.equal(straight, one_by_one)


def test_too_little_data_says_how_much_there_is(shards: list[Path]) -> None:
    with pytest.raises(JobError, match=r"^146 tokens hold no sequence of 200") as raised:
        Windows(shards, 200, seed=0)
    assert raised.value.reason == "DATASET_TOO_SMALL"
