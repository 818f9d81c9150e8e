"""``response_format`` and ``logit_bias`` in the engine on real Triton."""

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.engine.served import ServedEngine, is_installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
PROMPT = "The import statement"


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "schema": schema}


def kept_to(engine: ServedEngine, schema: Any) -> int:
    """How many whole answers came; each must be as ``schema`` says."""
    whole = 0
    for seed in range(8):
        answer = engine.ask(
            PROMPT,
            max_tokens=200,
            temperature=1.0,
            seed=seed,
            response_format=schema_format(schema),
        )
        assert not answer.error, answer.error
        if answer.finish_reason == "stop":
            whole += 1
            jsonschema.validate(json.loads(answer.text), schema)
    return whole


# One for each thing that the engine says it keeps to.
SCHEMAS: dict[str, Any] = {
    "object": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "counted properties": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "minProperties": 1,
        "maxProperties": 1,
    },
    "named properties": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "array": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": False},
    "integer": {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
    "number": {"type": "number"},
    "numbers between": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 7.25},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": -70, "maximum": 700},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$"},
    "pattern of a quotation mark": {"type": "string", "pattern": '^["]{3}$'},
    "date": {"type": "string", "format": "date"},
    "types": {"type": ["integer", "null"], "minimum": 3, "maximum": 5},
    "mixed types": {"type": ["string", "boolean"], "maxLength": 3},
    "one of two": {"anyOf": [{"type": "null"}, {"type": "integer", "maximum": -5}]},
    "one of several types": {"oneOf": [{"type": "null"}, {"type": "integer", "maximum": -5}]},
    "reference": {
        "$defs": {"one": {"type": "integer", "minimum": 5, "maximum": 6}},
        "type": "array",
        "items": {"$ref": "#/$defs/one"},
        "minItems": 1,
        "maxItems": 2,
    },
    "all of one": {"allOf": [{"enum": [3, 4]}]},
    "enum of a type": {"type": "string", "enum": ["yes", "no"]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_keeps_to_its_schema(engine: ServedEngine, name: str) -> None:
    assert kept_to(engine, SCHEMAS[name]) > 0


# What no grammar is made of, and who is named for it.
REFUSED: dict[str, Any] = {
    "not": {"type": "integer", "not": {"const": 3}},
    "uniqueItems": {"type": "array", "items": {"enum": [1]}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 5}},
    "if": {"type": "integer", "if": {"minimum": 3}, "then": {"maximum": 4}},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "allOf": {"allOf": [{"type": "integer"}, {"type": "number"}]},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "patternProperties": {"type": "object", "patternProperties": {"^x": {}}},
    "maximum": {"maximum": 3},
    "requires 'z'": {"type": "object", "properties": {"a": {}}, "required": ["z"]},
    "pattern, format and lengths": {"type": "string", "pattern": "a*", "maxLength": 3},
    "format": {"type": "string", "format": "colour"},
    "beside [$]ref": {"$defs": {"a": {}}, "$ref": "#/$defs/a", "minimum": 3},
    "must begin with #/": {"$ref": "elsewhere"},
    "is not of its type": {"type": "string", "enum": ["a", 3]},
    "'nonsense'": {"type": "nonsense"},
    "nope": {"$ref": "#/nope"},
    "within minimum and maximum": {"type": "integer", "minimum": 5, "maximum": 1},
    "must be an object": {"type": "array", "items": 3},
    "nested": {"$defs": {"d": json.loads('{"type":"array","items":' * 99 + "{}" + "}" * 99)}},
    "too large": {"enum": ["x" * 40_000]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_schema_that_would_not_be_kept_to_is_refused(engine: ServedEngine, reason: str) -> None:
    answer = engine.ask(PROMPT, max_tokens=4, response_format=schema_format(REFUSED[reason]))
    assert answer.error.startswith("response_format: ")
    assert re.search(reason, answer.error)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"type": "regex", "pattern": "(["}, "Unclosed"),
        ({"type": "regex", "pattern": "(?=a)b"}, "Lookahead"),
        ({"type": "regex", "pattern": ""}, "1 to 4096"),
        ({"type": "regex", "pattern": "a" * 5000}, "1 to 4096"),
        ({"type": "json_schema"}, "schema must be an object"),
        ({"type": "grammar"}, "must have a type"),
        ("json_object", "must have a type"),
    ],
)
def test_a_format_that_is_none_is_refused(engine: ServedEngine, given: Any, reason: str) -> None:
    assert reason in engine.ask(PROMPT, max_tokens=4, response_format=given).error


def test_a_bad_grammar_harms_nobody_else(engine: ServedEngine) -> None:
    sampling = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = engine.ask(PROMPT, **sampling)
    asked = [engine.begin(PROMPT, **sampling) for _ in range(4)]
    bad = {"type": "regex", "pattern": "a{3"}
    assert engine.ask(PROMPT, max_tokens=4, response_format=bad).error
    assert engine.ask(PROMPT, max_tokens=4, response_format=bad).error  # known by now
    assert [one.answer().text for one in asked] == [alone.text] * 4
    for one in asked:
        one.close()


@pytest.mark.parametrize("logprobs", [None, 2])
def test_an_answer_keeps_to_its_pattern(engine: ServedEngine, logprobs: int | None) -> None:
    pattern = "[0-9]{3}-(yes|no)"
    given = {"type": "regex", "pattern": pattern}
    answer = engine.ask(PROMPT, max_tokens=20, response_format=given, logprobs=logprobs)
    assert answer.finish_reason == "stop"
    assert re.fullmatch(pattern, answer.text)
    assert len(answer.logprobs) == (0 if logprobs is None else answer.token_count)


def test_a_json_object_is_one(engine: ServedEngine) -> None:
    answers = [
        engine.ask(PROMPT, max_tokens=400, seed=seed, response_format={"type": "json_object"})
        for seed in range(8)
    ]
    whole = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    assert whole and all(isinstance(one, dict) for one in whole)


def test_a_bias_forces_and_forbids(engine: ServedEngine) -> None:
    sampling = {"max_tokens": 12, "temperature": 0, "logprobs": 0}
    plain = engine.ask(PROMPT, **sampling)
    assert engine.ask(PROMPT, **sampling, logit_bias={"40": 100}).tokens == [40] * 12
    forbidden = plain.tokens[0]
    without = engine.ask(PROMPT, **sampling, logit_bias={str(forbidden): -100})
    assert without.tokens and forbidden not in without.tokens
    assert without.logprobs[0]["logprob"] < plain.logprobs[0]["logprob"]


def test_a_bias_of_nothing_changes_nothing(engine: ServedEngine) -> None:
    sampling = {"max_tokens": 24, "temperature": 0}
    plain = engine.ask(PROMPT, **sampling)
    biased = engine.ask(PROMPT, **sampling, logit_bias={"40": 0})
    assert (biased.text, biased.finish_reason) == (plain.text, plain.finish_reason)


def test_a_biased_answer_has_seed_stop_and_penalties(engine: ServedEngine) -> None:
    sampling = {"max_tokens": 24, "logit_bias": {"40": 1}}
    first, again = (engine.ask(PROMPT, **sampling, seed=3).text for _ in range(2))
    assert first == again != engine.ask(PROMPT, **sampling, seed=4).text
    stopped = engine.ask(PROMPT, **sampling, seed=3, stop=first[4:6])
    assert stopped.finish_reason == "stop"
    assert stopped.text == first[: first.index(first[4:6])]
    sampling = {"max_tokens": 12, "temperature": 0, "logprobs": 0, "logit_bias": {"40": 9}}
    penalised = engine.ask(PROMPT, **sampling, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(penalised.tokens)) > len(set(engine.ask(PROMPT, **sampling).tokens))
