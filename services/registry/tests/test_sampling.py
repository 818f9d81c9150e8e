"""Sampling parameters as the engine reads them."""

import json
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest

from millrace_registry.engines.sampling import Sampling, parse_sampling


def parse(room_tokens: int = 100, **given: Any) -> Sampling:
    return parse_sampling(json.dumps(given).encode(), room_tokens)


def test_nothing_given_samples_at_temperature_one_until_the_context_is_full() -> None:
    sampling = parse()
    assert sampling.options["do_sample"] and sampling.options["temperature"] == 1.0
    assert sampling.options["max_new_tokens"] == 100
    assert sampling.max_tokens == 100
    assert sampling.stops == () and sampling.logprobs is None
    assert not sampling.is_scored and not sampling.is_generated_by_scorer


def test_max_tokens_never_exceeds_the_room_left() -> None:
    assert parse(max_tokens=7).options["max_new_tokens"] == 7
    assert parse(max_tokens=4096).options["max_new_tokens"] == 100


def test_temperature_zero_is_greedy() -> None:
    options = parse(temperature=0).options
    assert options["do_sample"] is False and "temperature" not in options


def test_a_reply_repeats_only_with_a_seed() -> None:
    assert parse(seed=7).options["rng_seed"] == 7
    assert parse(seed=-1).options["rng_seed"] >= 0
    assert len({parse().options["rng_seed"] for _ in range(8)}) > 1


def test_null_counts_as_absent() -> None:
    nulls = dict.fromkeys(("top_p", "stop", "logprobs", "n", "logit_bias", "response_format"))
    assert parse(**nulls, prompt_logprobs=None, seed=1) == parse(seed=1)


@pytest.mark.parametrize(("given", "wanted"), [(None, None), (False, None), (0, 0), (20, 20)])
def test_logprobs(given: object, wanted: int | None) -> None:
    sampling = parse(logprobs=given)
    assert sampling.logprobs == wanted
    assert sampling.is_scored is (wanted is not None)
    assert not sampling.is_generated_by_scorer


def test_a_prompt_may_be_scored_alone() -> None:
    sampling = parse(max_tokens=0, prompt_logprobs=True)
    assert sampling.max_tokens == 0 and sampling.options["max_new_tokens"] == 1
    assert sampling.is_scored and sampling.is_generated_by_scorer
    assert parse(0, max_tokens=0, prompt_logprobs=True) == replace(sampling, options=ANY)


def test_a_full_context_has_room_for_no_answer() -> None:
    for given in ({}, {"max_tokens": 5}, {"prompt_logprobs": True}):
        with pytest.raises(ValueError, match="fills the context"):
            parse(0, **given)


def test_logit_bias_is_by_token_id() -> None:
    sampling = parse(logit_bias={"17": -100, "3": 0.5})
    assert sampling.logit_bias == {17: -100.0, 3: 0.5}
    assert sampling.is_scored and sampling.is_generated_by_scorer
    assert not parse(logit_bias={}).is_scored


@pytest.mark.parametrize(("given", "stops"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_is_a_string_or_a_list(given: object, stops: tuple[str, ...]) -> None:
    assert parse(stop=given).stops == stops


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"best_of": 2}', "unknown sampling parameters: best_of"),
        (b'{"n": 2}', "n must be 1"),
        (b'{"max_tokens": 0}', "max_tokens must be at least 1"),
        (b'{"max_tokens": -1, "prompt_logprobs": true}', "max_tokens must be at least 1"),
        (b'{"max_tokens": Infinity}', "max_tokens must be int"),
        (b'{"max_tokens": NaN}', "max_tokens must be int"),
        (b'{"max_tokens": 1.5}', "max_tokens must be int"),
        (b'{"temperature": "hot"}', "temperature must be float"),
        (b'{"stop": [""]}', "stop must be"),
        (b'{"stop": [1]}', "stop must be"),
        (b'{"stop": 3}', "stop must be"),
        (b'{"logprobs": 21}', "logprobs must be 0 to 20"),
        (b'{"logprobs": -1}', "logprobs must be 0 to 20"),
        (b'{"logprobs": "5"}', "logprobs must be int"),
        (b'{"prompt_logprobs": 1}', "prompt_logprobs must be true or false"),
        (b'{"logit_bias": [1]}', "logit_bias must be an object"),
        (b'{"logit_bias": {"-1": 1}}', "keys are token ids"),
        (b'{"logit_bias": {"1": "a"}}', "logit_bias must be float"),
        (b'{"logit_bias": {"1": 100.5}}', "logit_bias must be -100 to 100"),
        (b'{"logit_bias": {"1": NaN}}', "logit_bias must be"),
        (b'{"logit_bias": {"1": 1}, "response_format": {}}', "together with response_format"),
        (b'{"ignore_eos": true, "response_format": {}}', "together with response_format"),
    ],
)
def test_a_mistake_is_named(document: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sampling(document, 100)
