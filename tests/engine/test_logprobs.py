"""Log-probabilities from the engine on real Triton, held against transformers'."""

from typing import Any

import numpy as np
import pytest

from tests.engine.served import ServedEngine, is_installed
from tests.engine.tiny_model import TEXT, TinyModel

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
TOLERANCE = 1e-3  # nats
PROMPT = "The import statement"
LONG = TEXT[:1500]  # more tokens than the engine scores at once


def largest_difference(entries: list[dict[str, Any]], expected: np.ndarray) -> float:
    """Between entries, with their alternatives, and rows of log-probabilities."""
    pairs = [
        (one["logprob"], row[one["id"]])
        for entry, row in zip(entries, expected, strict=True)
        for one in (entry, *entry["top"])
    ]
    return max(abs(said - is_so) for said, is_so in pairs)


def test_a_long_prompts_are_those_of_transformers(engine: ServedEngine, tiny: TinyModel) -> None:
    tokens = tiny.encode(LONG)[:400]
    answer = engine.ask(tokens, max_tokens=0, prompt_logprobs=True, logprobs=5)
    assert (answer.finish_reason, answer.token_count, answer.text) == ("length", 0, "")
    assert [entry["id"] for entry in answer.prompt_logprobs] == tokens
    first, *others = answer.prompt_logprobs
    assert first["logprob"] is None and first["top"] == []
    expected = tiny.logprobs(tokens)[:-1]
    assert largest_difference(others, expected) < TOLERANCE
    for entry, row in zip(others, expected, strict=True):
        told = [one["logprob"] for one in entry["top"]]
        assert told == sorted(told, reverse=True)
        assert told == pytest.approx(np.sort(row)[:-6:-1], abs=TOLERANCE)


@pytest.mark.parametrize("logprobs", [0, 1, 20])
def test_an_answers_are_those_of_transformers(
    engine: ServedEngine, tiny: TinyModel, logprobs: int
) -> None:
    answer = engine.ask(PROMPT, max_tokens=24, temperature=0, logprobs=logprobs)
    assert len(answer.logprobs) == answer.token_count
    assert {len(entry["top"]) for entry in answer.logprobs} == {logprobs}
    spelled = bytes(byte for entry in answer.logprobs for byte in entry["bytes"])
    assert spelled.decode(errors="replace") == answer.text
    prompt = tiny.encode(PROMPT)
    rows = tiny.logprobs(prompt + answer.tokens)[len(prompt) - 1 : -1]
    assert largest_difference(answer.logprobs, rows) < TOLERANCE


def test_asking_changes_nothing_in_the_answer(engine: ServedEngine) -> None:
    plain = engine.ask(PROMPT, max_tokens=24, temperature=0)
    asked = engine.ask(PROMPT, max_tokens=24, temperature=0, logprobs=3, prompt_logprobs=True)
    assert (asked.text, asked.finish_reason) == (plain.text, plain.finish_reason)
    assert plain.logprobs == plain.prompt_logprobs == []
    assert len(asked.prompt_logprobs) == asked.prompt_token_count == plain.prompt_token_count


def test_a_stream_with_them_comes_in_pieces(engine: ServedEngine) -> None:
    asked = engine.begin(PROMPT, max_tokens=400, temperature=0, logprobs=2, ignore_eos=True)
    pieces = len(asked.answer().pieces)
    asked.close()
    assert pieces > 2


def test_they_are_the_models_own_at_any_temperature(engine: ServedEngine, tiny: TinyModel) -> None:
    sampling = {"temperature": 1.9, "frequency_penalty": 1.5, "seed": 5}
    answer = engine.ask(PROMPT, max_tokens=16, logprobs=0, **sampling)
    prompt = tiny.encode(PROMPT)
    rows = tiny.logprobs(prompt + answer.tokens)[len(prompt) - 1 : -1]
    assert largest_difference(answer.logprobs, rows) < TOLERANCE


def test_a_token_that_ends_the_answer_has_an_entry(engine: ServedEngine) -> None:
    answer = engine.ask(PROMPT, max_tokens=8, temperature=0, logprobs=1, logit_bias={"2": 100})
    assert (answer.finish_reason, answer.token_count, answer.text) == ("stop", 1, "")
    [entry] = answer.logprobs
    assert (entry["id"], entry["token"], entry["bytes"]) == (2, "<|im_end|>", [])
    assert entry["logprob"] < entry["top"][0]["logprob"]


def test_a_prompt_of_one_token_is_scored(engine: ServedEngine) -> None:
    answer = engine.ask([7], max_tokens=0, prompt_logprobs=True)
    assert [entry["logprob"] for entry in answer.prompt_logprobs] == [None]


def test_a_prompt_that_fills_the_context_is_scored(engine: ServedEngine) -> None:
    full = [7] * 512
    assert len(engine.ask(full, max_tokens=0, prompt_logprobs=True).prompt_logprobs) == 512
    assert "context" in engine.ask(full, max_tokens=1, prompt_logprobs=True).error
    assert "context" in engine.ask([*full, 7], max_tokens=0, prompt_logprobs=True).error


def test_more_than_are_scored_at_once_are_all_answered(engine: ServedEngine) -> None:
    sampling = {"max_tokens": 40, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    alone = engine.ask(PROMPT, **sampling)
    asked = [engine.begin(PROMPT, **sampling) for _ in range(20)]
    answers = [one.answer() for one in asked]
    for one in asked:
        one.close()
    assert [answer.text for answer in answers] == [alone.text] * 20
    assert all(answer.tokens == alone.tokens for answer in answers)


def test_cancelled_ones_make_room(engine: ServedEngine) -> None:
    asked = [engine.begin(PROMPT, max_tokens=480, ignore_eos=True, logprobs=20) for _ in range(20)]
    asked[0].next()
    for one in asked:
        one.close()
    assert engine.ask(PROMPT, max_tokens=4, logprobs=1).token_count > 0


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"512": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": 1}, "response_format": {"type": "json_object"}}, "logit_bias"),
    ],
)
def test_a_mistake_is_named(engine: ServedEngine, sampling: dict[str, Any], named: str) -> None:
    assert named in engine.ask(PROMPT, **sampling).error
