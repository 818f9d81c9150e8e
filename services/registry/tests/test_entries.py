"""Log-probabilities as the engine writes them."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.engines.logprobs import Entries, likeliest, log_softmax

ENTRIES = Entries([b"a", b"", "ä".encode()[:1], b'"'], ["a", "<|end|>", "?", '"'])


def entries(rows: list[list[float]], tokens: list[int], alternatives: int) -> list[dict[str, Any]]:
    written = ENTRIES.of_rows(np.array(rows, np.float32), tokens, alternatives)
    return [json.loads(entry) for entry in written]


def test_an_entry_tells_its_token_and_the_likeliest() -> None:
    [entry] = entries([[0.0, 1.0, 1.0, -50.0]], [0], 2)
    total = math.log(1 + 2 * math.e)
    assert (entry["id"], entry["token"], entry["bytes"]) == (0, "a", [97])
    assert entry["logprob"] == pytest.approx(-total, abs=1e-5)
    assert [one["id"] for one in entry["top"]] == [1, 2]
    assert [one["logprob"] for one in entry["top"]] == pytest.approx([1 - total] * 2, abs=1e-5)


def test_what_spells_nothing_is_told_by_its_name() -> None:
    special, half, quote = entries([[0.0] * 4] * 3, [1, 2, 3], 0)
    assert (special["token"], special["bytes"], special["top"]) == ("<|end|>", [], [])
    assert (half["token"], half["bytes"]) == ("�", [0xC3])
    assert (quote["token"], quote["bytes"]) == ('"', [34])


def test_minus_infinity_is_null() -> None:
    [entry] = entries([[0.0, -math.inf, 0.0, 0.0]], [1], 4)
    assert entry["logprob"] is None
    assert entry["top"][-1] == {"id": 1, "token": "<|end|>", "bytes": [], "logprob": None}
    first = json.loads(ENTRIES.of_first(0))
    assert (first["id"], first["logprob"], first["top"]) == (0, None, [])


def test_ids_that_the_tokenizer_lacks_are_never_alternatives() -> None:
    [entry] = entries([[0.0, 0.0, 0.0, 0.0, 9.0]], [0], 4)
    assert sorted(one["id"] for one in entry["top"]) == [0, 1, 2, 3]


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.integers(0, 20))
def test_the_likeliest_are_the_greatest_in_order(row: list[float], count: int) -> None:
    logprobs = log_softmax(np.array(row, np.float32))
    assert np.exp(logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    found = likeliest(logprobs, count)
    assert found == sorted(range(len(row)), key=lambda at: (-logprobs[at], at))[:count] or (
        [logprobs[at] for at in found] == sorted(logprobs, reverse=True)[:count]
    )
