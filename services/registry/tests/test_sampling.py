"""Sampling parameters as the engine reads them."""

import json
from typing import Any

import pytest

from millrace_registry.engines.sampling import Sampling, parse_sampling


def parse(room_tokens: int = 100, **given: Any) -> Sampling:
    return parse_sampling(json.dumps(given).encode(), room_tokens)


def test_nothing_given_samples_at_temperature_one_until_the_context_is_full() -> None:
    sampling = parse()
    assert sampling.options["do_sample"] and sampling.options["temperature"] == 1.0
    assert sampling.options["max_new_tokens"] == 100
    assert sampling.stops == () and not sampling.logprobs


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
    assert parse(top_p=None, stop=None, logprobs=None, n=None, seed=1) == parse(seed=1)


@pytest.mark.parametrize(("given", "wanted"), [(None, False), (False, False), (0, True), (5, True)])
def test_logprobs(given: object, wanted: bool) -> None:
    assert parse(logprobs=given).logprobs is wanted


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
        (b'{"max_tokens": 1.5}', "max_tokens must be int"),
        (b'{"temperature": "hot"}', "temperature must be float"),
        (b'{"stop": [""]}', "stop must be"),
        (b'{"stop": [1]}', "stop must be"),
        (b'{"stop": 3}', "stop must be"),
    ],
)
def test_a_mistake_is_named(document: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sampling(document, 100)
