"""What is embedded together, and what becomes of the model's states."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.engines.embedding import (
    MOST_INPUTS,
    MOST_TOKENS,
    PIECE_TOKENS,
    EmbeddingRequest,
    Means,
    batches,
    check_lengths,
    padded,
    parse_embedding,
    split,
)

inputs = st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=80), min_size=1, max_size=40)


def parsed(**sampling: Any) -> EmbeddingRequest | None:
    return parse_embedding(json.dumps(sampling).encode())


def test_what_asks_for_text_asks_for_none() -> None:
    assert parse_embedding(b'{"max_tokens": 3}') is None
    assert parse_embedding(b'{"embed": null}') is None
    assert parse_embedding(b'["embed"]') is None
    assert parse_embedding(b'{"embed"') is None, "which parse_sampling has words for"


def test_one_input_or_several() -> None:
    assert parsed(embed=True) == EmbeddingRequest(None, None)
    assert parsed(embed={"sizes": [3, 4], "dimensions": 8}) == EmbeddingRequest((3, 4), 8)
    assert parsed(embed={"dimensions": 8}, max_tokens=0, stream=False) == EmbeddingRequest(None, 8)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"embed": 1}, "embed must be true"),
        ({"embed": {"size": 1}}, "embed must be true"),
        ({"embed": {"sizes": []}}, "1 to 2048 inputs"),
        ({"embed": {"sizes": [1] * (MOST_INPUTS + 1)}}, "1 to 2048 inputs"),
        ({"embed": {"sizes": [3, 0]}}, "embed.sizes"),
        ({"embed": {"sizes": [True]}}, "embed.sizes"),
        ({"embed": {"sizes": 3}}, "embed.sizes"),
        ({"embed": {"dimensions": 0}}, "dimensions"),
        ({"embed": {"dimensions": 1.5}}, "dimensions"),
        ({"embed": True, "logprobs": 1}, "logprobs cannot be had together with embed"),
    ],
)
def test_a_mistake_is_named(sampling: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parsed(**sampling)


def test_a_text_is_split_by_characters() -> None:
    assert split("a🙂bcd", (2, 1, 2)) == ["a🙂", "b", "cd"]
    assert split("a🙂", None) == ["a🙂"]


@given(inputs)
def test_tokens_are_split_as_they_were_joined(sequences: list[list[int]]) -> None:
    found = split(np.concatenate(sequences), [len(one) for one in sequences])
    assert [list(one) for one in found] == sequences


@pytest.mark.parametrize(("whole", "sizes"), [("", None), ("abc", (2,)), ("abc", (2, 2))])
def test_sizes_of_something_else_are_refused(whole: str, sizes: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="sizes"):
        split(whole, sizes)


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([4, 9], "input 1 has 9 tokens, but the context is 8"),
        ([4, 0], "input 1 has no tokens"),
        ([8] * (MOST_TOKENS // 8 + 1), f"at most {MOST_TOKENS}"),
    ],
)
def test_a_limit_that_is_passed_is_named(lengths: list[int], named: str) -> None:
    check_lengths([8, 8], 8)
    with pytest.raises(ValueError, match=named):
        check_lengths(lengths, 8)


@given(st.lists(st.integers(1, 2 * PIECE_TOKENS), min_size=1, max_size=200))
def test_each_input_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int]) -> None:
    found = batches(lengths)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        area = len(batch) * max(lengths[index] for index in batch)
        assert area <= PIECE_TOKENS or len(batch) == 1


@given(inputs, st.integers(1, 50), st.integers(1, 4))
def test_means_are_those_of_each_input_alone(
    sequences: list[list[int]], piece: int, dimensions: int
) -> None:
    table = np.random.default_rng(0).normal(size=(501, 4)).astype(np.float32)
    tokens = padded(sequences)
    means = Means([len(one) for one in sequences], 4)
    for begin in range(0, tokens.shape[1], piece):
        means.add(table[tokens[:, begin : begin + piece]])
    expected = np.stack([table[one].mean(axis=0)[:dimensions] for one in sequences])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = means.vectors(dimensions)
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(expected, abs=1e-4)


def test_what_is_in_the_padding_does_not_count() -> None:
    means = Means([1, 2], 2)
    means.add(np.array([[[3, 4], [np.nan, np.inf]], [[1, 0], [0, 1]]], np.float32))
    means.add(np.full((2, 3, 2), np.nan, np.float32))
    assert means.vectors(None) == pytest.approx(np.array([[0.6, 0.8], [0.5**0.5, 0.5**0.5]]))


def test_zeros_stay_zeros_and_what_is_no_number_is_refused() -> None:
    means = Means([1], 2)
    means.add(np.zeros((1, 1, 2), np.float32))
    assert means.vectors(None).tolist() == [[0, 0]]
    broken = Means([1], 2)
    broken.add(np.full((1, 1, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        broken.vectors(None)
