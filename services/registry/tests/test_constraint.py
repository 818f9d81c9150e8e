"""What of ``response_format`` reaches the engine. What is written then: ``test_grammar.py``."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import millrace_registry

sys.path.append(str(Path(millrace_registry.__file__).parent / "engines"))
from millrace_registry.engines.constraint import Constraint, parse_constraint


def schema(**keywords: Any) -> Constraint:
    return parse_constraint({"type": "json_schema", "schema": keywords})


def refusal(**keywords: Any) -> str:
    with pytest.raises(ValueError) as caught:
        schema(**keywords)
    return str(caught.value)


def test_the_three_kinds() -> None:
    assert parse_constraint({"type": "regex", "pattern": "a+"}) == Constraint("regex", "a+")
    assert parse_constraint({"type": "json_object"}) == schema(type="object")
    assert schema(type="array", items={"type": "integer"}).kind == "grammar"


def test_annotations_say_nothing() -> None:
    assert schema(title="A", description="b", type="string", default="", examples=["c"])


def test_a_property_may_be_named_like_a_keyword() -> None:
    assert schema(type="object", properties={"not": {"type": "string"}}, required=["not"])


def test_a_mistake_is_told_with_its_place() -> None:
    inner = {"type": "array", "prefixItems": [True, {"type": "string", "uniqueItems": True}]}
    with pytest.raises(ValueError, match=r"uniqueItems in schema\.properties\.a\.prefixItems\[1\]"):
        schema(type="object", properties={"a": inner})


TAGGED = {
    "a": {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]},
    "b": {"type": "object", "properties": {"kind": {"const": "b"}}},
    "c": {"type": "object", "properties": {"kind": {"const": "c"}}},
    "z": {"type": "object", "properties": {"z": True}, "additionalProperties": False},
}


@pytest.mark.parametrize(
    ("branches", "is_taken"),
    [
        ([{"type": "integer"}, {"type": "string"}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "integer"}, {"const": 1.5}], True),
        ([{"type": "number"}, {"const": 1}], False),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": 1}, {"const": True}], True),
        ([{"enum": ["a", "b"]}, {"enum": ["b", "c"]}], False),
        ([{"const": {"a": 1}}, {"const": {"a": 2}}], False),
        ([{"type": "integer"}, {}], False),
        ([{"type": "string", "maxLength": 1}, {"type": "string", "minLength": 2}], False),
        ([TAGGED["a"], TAGGED["b"]], True),
        ([TAGGED["b"], TAGGED["c"]], False),
        ([TAGGED["a"], TAGGED["z"]], True),
        ([TAGGED["b"], TAGGED["z"]], False),
        ([{"anyOf": [{"const": 1}, {"const": 2}]}, {"oneOf": [{"const": 3}, {"const": 4}]}], True),
        ([{"anyOf": [{"const": 1}, {"const": 2}]}, {"const": 2}], False),
        ([{"$ref": "#/$defs/one"}, {"const": 2}], True),
        ([{"$ref": "#/$defs/one"}, {"allOf": [{"$ref": "#/$defs/one"}]}], False),
        ([{"$ref": "#/$defs/round"}, {"const": 2}], False),
    ],
)
def test_one_of_is_taken_when_at_most_one_can_hold(branches: list[Any], is_taken: bool) -> None:
    definitions = {"one": {"const": 1}, "round": {"anyOf": [{"$ref": "#/$defs/round"}]}}
    for order in (branches, branches[::-1]):
        if is_taken:
            assert schema(oneOf=order, **{"$defs": definitions})
        else:
            assert "oneOf in schema " in refusal(oneOf=order, **{"$defs": definitions})


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"type": "integer", "not": {"const": 3}}, "not in schema "),
        ({"type": "array", "items": {"uniqueItems": True}}, r"uniqueItems in schema\.items "),
        ({"maximum": 3}, "maximum in schema "),
        ({"type": "string", "minimum": 3}, "minimum in schema "),
        ({"type": "integer", "minimum": True}, "minimum in schema must be a number"),
        ({"type": "integer", "minimum": "3"}, "minimum in schema must be a number"),
        ({"type": "number", "maximum": float("nan")}, "maximum in schema must be a number"),
        ({"type": "number", "exclusiveMinimum": 1e-20}, "need more than 15 digits"),
        ({"type": "number", "multipleOf": 0}, "multipleOf in schema must be more than 0"),
        ({"type": "integer", "multipleOf": 99_991}, "multipleOf in schema is too large"),
        ({"type": "integer", "minimum": 10**50}, "too many digits"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "within minimum and maximum in schema"),
        ({"type": "string", "minLength": -1}, "minLength in schema must be an integer"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength in schema is more"),
        ({"type": "array", "minItems": 1.5}, "minItems in schema must be an integer"),
        ({"type": "array", "items": False, "minItems": 1}, "minItems in schema is more"),
        ({"type": "array", "prefixItems": {}}, "prefixItems in schema must be a list"),
        ({"type": "object", "properties": []}, "properties in schema must be an object"),
        ({"type": "object", "required": "a"}, "required in schema must be a list"),
        ({"type": "object", "maxProperties": "1"}, "maxProperties in schema must be"),
        ({"type": "object", "minProperties": 2}, "no object has minProperties"),
        ({"type": "object", "minProperties": 1, "maxProperties": 0}, "no object has"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern in schema is not supported: assert"),
        ({"type": "string", "pattern": "a\\b"}, "anchors stand at the ends"),
        ({"type": "string", "pattern": "a^b"}, "anchors stand at the ends"),
        ({"type": "string", "pattern": "(?i)a"}, "pattern in schema is not supported"),
        ({"type": "string", "pattern": "(a)\\1"}, "pattern in schema is not supported"),
        ({"type": "string", "pattern": "[a"}, "pattern in schema is not supported"),
        ({"type": "string", "pattern": "(" * 2000 + ")" * 2000}, "pattern in schema"),
        ({"type": "string", "pattern": "(a{999}){999}"}, "more than 100000 repetitions"),
        ({"type": "string", "pattern": 3}, "pattern in schema must be"),
        ({"type": "string", "format": ["date"]}, "format in schema must be one of"),
        ({"$ref": "#/$defs/a"}, r"\$ref in schema leads nowhere"),
        ({"$ref": "#"}, r"\$ref in schema leads to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, r"\$ref in schema leads to itself"),
        ({"examples": [{"not": {}}], "$ref": "#/examples/0"}, r"not in schema\.examples\.0 "),
        ({"const": float("inf")}, "a number that JSON has not"),
        ({"oneOf": [{"const": float("inf")}, {"type": "null"}]}, "a number that JSON has not"),
    ],
)
def test_what_is_not_kept_to_is_refused_with_its_place(keywords: Any, reason: str) -> None:
    refused = refusal(**keywords)
    assert refused.startswith("response_format: ")
    assert re.search(reason, refused)


def many(count: int, make: Any) -> dict[str, Any]:
    return {f"p{at}": make(at) for at in range(count)}


@pytest.mark.parametrize(
    "keywords",
    [
        {"properties": many(1500, lambda _: {}), "additionalProperties": {}},
        {"properties": many(900, lambda _: {}), "minProperties": 400},
        {"properties": many(500, lambda at: {"type": "integer", "multipleOf": 1001 + 2 * at})},
        {"properties": many(1000, lambda at: {"$ref": f"#/properties/p{(at + 1) % 1000}"})},
        {"properties": {"a": {"oneOf": [{"const": at} for at in range(1500)]}}},
        {"properties": many(60, lambda at: {"anyOf": [{"$ref": f"#/properties/p{at + 1}"}] * 9})},
    ],
)
def test_the_largest_schemas_are_soon_taken_or_refused(keywords: Any) -> None:
    """Everybody else waits meanwhile."""
    began = time.process_time()
    try:
        taken = schema(type="object", **keywords).text
    except ValueError as error:
        taken = str(error)
    assert taken
    assert time.process_time() - began < 5


KEYS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "$ref",
        "anyOf",
        "oneOf",
        "allOf",
        "const",
        "pattern",
        "format",
        "prefixItems",
        "$defs",
        "minimum",
        "multipleOf",
        "minItems",
        "maxLength",
        "additionalProperties",
        "schema",
        "type",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "array", "#/$defs/a"]),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(JSON)
def test_whatever_is_given_it_is_taken_or_refused_by_name(value: Any) -> None:
    for format_ in (value, {"type": "json_schema", "schema": value}):
        try:
            parse_constraint(format_)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = "response_format: none"
        assert refusal.startswith("response_format")
