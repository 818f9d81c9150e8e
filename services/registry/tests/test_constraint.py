"""What of ``response_format`` reaches the engine. What it makes of it: tests/engine."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.engines.constraint import Constraint, parse_constraint


def schema(**keywords: Any) -> Constraint:
    return parse_constraint({"type": "json_schema", "schema": keywords})


def test_the_three_kinds() -> None:
    assert parse_constraint({"type": "regex", "pattern": "a+"}) == Constraint("regex", "a+")
    assert json.loads(parse_constraint({"type": "json_object"}).text) == {"type": "object"}
    made = schema(type="array", items={"type": "integer"})
    assert (made.kind, json.loads(made.text)["items"]) == ("json_schema", {"type": "integer"})


def test_annotations_say_nothing() -> None:
    assert schema(title="A", description="b", type="string", default="", examples=["c"])


def test_a_property_may_be_named_like_a_keyword() -> None:
    assert schema(type="object", properties={"not": {"type": "string"}}, required=["not"])


def test_a_mistake_is_told_with_its_place() -> None:
    inner = {"type": "array", "prefixItems": [True, {"type": "string", "uniqueItems": True}]}
    with pytest.raises(ValueError, match=r"uniqueItems in schema\.properties\.a\.prefixItems\[1\]"):
        schema(type="object", properties={"a": inner})


KEYS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "$ref",
        "anyOf",
        "allOf",
        "const",
        "pattern",
        "format",
        "prefixItems",
        "$defs",
        "minimum",
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
