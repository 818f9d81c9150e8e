"""Greedy answers through each kind of runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compress import Store

from millrace_compressor.jobs import answers, evaluate, plain
from millrace_compressor.jobs.format import Conversion, Model, Recipe, Tokens
from millrace_compressor.jobs.formats import format_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
TOKENS = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def counting(vocabulary: int) -> Callable[[Tokens, Any], tuple[Tokens, Any]]:
    """A model that says the number after the last one."""

    def step(ids: Tokens, before: Any) -> tuple[Tokens, Any]:
        assert (before is None) == (ids.shape[1] > 1)
        return (ids[:, -1] + 1) % vocabulary, True

    return step


@settings(deadline=None)
@given(
    starts=st.lists(st.tuples(st.integers(2, 6), st.integers(0, 19)), min_size=1, max_size=90),
    tokens=st.integers(1, 12),
    stop=st.integers(0, 19),
)
def test_each_prompt_has_its_own_answer_and_no_stop_in_it(
    starts: list[tuple[int, int]], tokens: int, stop: int
) -> None:
    prompts = [[7] * (length - 1) + [last] for length, last in starts]
    found = answers.with_steps(counting(20), prompts, tokens, {stop})
    for prompt, answer in zip(prompts, found, strict=True):
        whole = [(prompt[-1] + 1 + count) % 20 for count in range(tokens)]
        cut = whole.index(stop) if stop in whole else tokens
        assert answer == whole[:cut]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 5000), max_size=200))
def test_every_prompt_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int]) -> None:
    prompts = [range(length) for length in lengths]
    batches = answers._batches(prompts)
    assert sorted(place for batch in batches for place in batch) == list(range(len(prompts)))
    for batch in batches:
        assert 0 < len(batch) <= answers.ROWS_AT_ONCE
        padded = len(batch) * max(lengths[place] for place in batch)
        assert len(batch) == 1 or padded <= answers.TOKENS_AT_ONCE


def prompts_of(store: Store) -> list[list[int]]:
    stream = np.load(store.folder / "evaluation" / "heldout-00000.npy").astype(int).tolist()
    return [stream[start : start + length] for start, length in ((0, 9), (40, 3), (80, 9), (7, 20))]


def alone(model: Model, prompt: list[int]) -> list[int]:
    """One token after another, all computed anew."""
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(model.logits(np.array([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_padding_changes_nothing(store: Store) -> None:
    torch.manual_seed(0)
    model = plain.Artifact(store.folder / "checkpoint" / "model")
    prompts = prompts_of(store)
    expected = [alone(model, prompt) for prompt in prompts]
    assert model.answer(prompts, TOKENS, ()) == expected
    stop = expected[0][0]
    stopped = model.answer(prompts, TOKENS, {stop})
    assert stopped[0] == []
    original = evaluate.Original(store.folder / "checkpoint" / "model")
    assert original.answer(prompts, TOKENS, {stop}) == stopped


@pytest.mark.parametrize("target", ["onnx-int8-dynamic", "tensorrt-fp16"])
def test_what_is_not_padded_answers_as_its_own_logits_say(
    store: Store, tmp_path: Path, target: str
) -> None:
    def nothing() -> Tokens:
        raise AssertionError("it is not calibrated")

    made, model = format_of(target), store.folder / "checkpoint" / "model"
    made.convert(Conversion(model, target, Recipe(), nothing, 1), tmp_path)
    artifact = made.open(tmp_path, 1)
    prompts = prompts_of(store)
    found = artifact.answer(prompts, TOKENS, ())
    assert found == [alone(artifact, prompt) for prompt in prompts]
    assert artifact.answer(prompts, TOKENS, {found[1][0]})[1] == []
