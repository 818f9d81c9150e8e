"""What is written under a grammar, by the engine's own matcher, is what its schema allows."""

import datetime
import ipaddress
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_writer import RandomWriter

import millrace_registry

sys.path.append(str(Path(millrace_registry.__file__).parent / "engines"))
from millrace_registry.engines.constraint import parse_constraint

SEEDS = range(12)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RandomWriter]:
    random_writer = RandomWriter(tmp_path_factory.mktemp("tokenizer"))
    yield random_writer
    random_writer.close()


def grammar(schema: Any) -> str:
    return parse_constraint({"type": "json_schema", "schema": schema}).text


def refusal(schema: Any) -> str:
    """Why there is no grammar for it, "" when there is one."""
    try:
        grammar(schema)
    except ValueError as error:
        return str(error)
    return ""


def whole(writer: RandomWriter, schema: Any, seeds: Any = SEEDS) -> list[str]:
    """The answers that were not cut off; each is as ``schema`` says, to the last decimal."""
    made = grammar(schema)
    answers = [writer.write("grammar", made, seed) for seed in seeds]
    texts = [answer for answer in answers if answer is not None]
    for text in texts:
        told = json.loads(json.dumps(schema), parse_float=Decimal)
        jsonschema.Draft202012Validator(told).validate(json.loads(text, parse_float=Decimal))
    return texts


# One for each thing that is said to be kept to.
SCHEMAS: dict[str, Any] = {
    "anything": {},
    "object": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": True},
        "required": ["b"],
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "counted properties": {
        "type": "object",
        "properties": {name: {"const": at} for at, name in enumerate("abcd")},
        "required": ["c"],
        "minProperties": 2,
        "maxProperties": 3,
    },
    "other properties": {
        "type": "object",
        "properties": {"a": {"const": 1}, "ab": {"const": 2}, 'q"': {"const": 3}},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
        "maxProperties": 4,
    },
    "array": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
    "array without an end": {"type": "array", "items": {"type": "null"}, "minItems": 1},
    "empty array": {"type": "array", "maxItems": 0},
    "tuple": {
        "type": "array",
        "prefixItems": [{"const": 1}, {"const": "b"}],
        "items": {"type": "null"},
        "minItems": 3,
        "maxItems": 5,
    },
    "integer": {"type": "integer"},
    "integers between": {"type": "integer", "minimum": -103, "exclusiveMaximum": 1207},
    "integers above": {"type": "integer", "exclusiveMinimum": 98},
    "integers below": {"type": "integer", "maximum": -7.5},
    "64 bits": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": -1000},
    "number": {"type": "number"},
    "numbers between": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 12.25},
    "numbers above": {"type": "number", "exclusiveMinimum": 0},
    "numbers within far bounds": {"type": "number", "minimum": -1e300, "maximum": 10**16},
    "cents": {"type": "number", "multipleOf": 0.01, "maximum": 3},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "least length": {"type": "string", "minLength": 3},
    "pattern": {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$"},
    "pattern of everything": {
        "type": "string",
        "pattern": r'^(["\\\n\x01]|\s\w|[^a-z"]|\D.\W|[^\s\d]|ü(?:x|yz)?)+?\.(x*)*$',
    },
    "types": {"type": ["integer", "null"], "minimum": 3, "maximum": 5},
    "mixed types": {"type": ["string", "boolean"], "maxLength": 3},
    "any of": {"anyOf": [{"type": "null"}, {"type": "integer", "maximum": -5}]},
    "all of one": {"allOf": [{"enum": [3, 4]}]},
    "enum": {"type": "string", "enum": ["yes", 'n"o\n', "ü", "\ud800"]},
    "const": {"const": {"a": [1, "é", None], "b": 0.5}},
    "list of lists": {
        "$defs": {"li/st": {"type": "array", "items": {"$ref": "#/$defs/li~1st"}}},
        "$ref": "#/$defs/li~1st",
    },
    "recursion": {
        "type": "object",
        "properties": {
            "value": {"type": "integer", "minimum": 0, "maximum": 9},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    },
    "one of types": {"oneOf": [{"type": "integer"}, {"type": ["string", "null"], "maxLength": 3}]},
    "one of values": {"oneOf": [{"const": 1}, {"enum": [True, "1"]}, {"const": 1.5}]},
    "one of tags": {
        "$defs": {
            name: {
                "type": "object",
                "properties": {"kind": {"const": name}, "size": {"enum": [1, 2]}},
                "required": ["kind"],
            }
            for name in ("cat", "dog")
        },
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_is_valid(writer: RandomWriter, name: str) -> None:
    assert whole(writer, SCHEMAS[name])


def is_email(text: str) -> bool:
    local, _, host = text.rpartition("@")
    return len(local) <= 64 and ".." not in local and is_host(host)


def is_host(text: str) -> bool:
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return len(text) <= 253 and bool(re.fullmatch(rf"{label}(\.{label})*", text))


def is_duration(text: str) -> bool:
    """RFC 3339, appendix A."""
    time = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
    date = "([0-9]+D|[0-9]+M([0-9]+D)?|[0-9]+Y([0-9]+M([0-9]+D)?)?)"
    return bool(re.fullmatch(f"P({date}({time})?|{time}|[0-9]+W)", text))


# Each raises or says no where the text is not of the format.
READERS: dict[str, Callable[[str], Any]] = {
    "date": datetime.date.fromisoformat,
    "time": lambda text: datetime.time.fromisoformat(text).tzinfo,
    "date-time": lambda text: datetime.datetime.fromisoformat(text).tzinfo,
    "duration": is_duration,
    "email": is_email,
    "hostname": is_host,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": lambda text: str(uuid.UUID(text)) == text,
    "uri": lambda text: urlsplit(text).scheme and is_host(urlsplit(text).hostname or ""),
}


@pytest.mark.parametrize("name", READERS)
def test_a_format_is_kept_to(writer: RandomWriter, name: str) -> None:
    texts = whole(writer, {"type": "string", "format": name}, range(40))
    assert texts
    for text in texts:
        assert READERS[name](json.loads(text)), text


def test_white_space_is_one_space_at_most(writer: RandomWriter) -> None:
    nested = {"type": "array", "items": SCHEMAS["recursion"]}
    texts = whole(writer, nested, range(40))
    assert {True, False} == {" " in text for text in texts}
    for text in texts:
        value = json.loads(text)
        compact = json.dumps(value, separators=(",", ":"))
        assert text.replace(", ", ",").replace(": ", ":") == compact


@pytest.mark.parametrize("character", ["\n", "  ", "\t", " }", "{ "])
def test_white_space_is_nowhere_else(writer: RandomWriter, character: str) -> None:
    made = parse_constraint({"type": "json_object"}).text
    for seed in SEEDS:
        text = writer.write("grammar", made, seed)
        outside = re.sub(r'"(\\.|[^"\\])*"', '""', text or "")
        assert character not in outside


BOUNDS = st.integers(-(10**6), 10**6) | st.decimals(-1000, 1000, places=3).map(float)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["integer", "number"]),
    st.fixed_dictionaries(
        {},
        optional={
            "minimum": BOUNDS,
            "maximum": BOUNDS,
            "exclusiveMinimum": BOUNDS,
            "exclusiveMaximum": BOUNDS,
            "multipleOf": st.integers(1, 40) | st.sampled_from([0.5, 0.01, 1.5, 100, 1000, 0.125]),
        },
    ),
    st.integers(0, 2**31),
)
def test_numbers(writer: RandomWriter, kind: str, bounds: dict[str, Any], seed: int) -> None:
    schema = {"type": kind, **bounds}
    if refused := refusal(schema):
        assert re.search("no number is within|need more than 15 digits", refused)
    else:
        assert whole(writer, schema, [seed])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 30), st.integers(1, 9))
def test_refused_only_when_there_is_none(
    writer: RandomWriter, low: int, width: int, step: int
) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": low + width, "multipleOf": step}
    allowed = [n for n in range(low, low + width + 1) if n % step == 0]
    assert bool(refusal(schema)) == (not allowed)
    if allowed:
        written = {int(text) for text in whole(writer, schema, range(4))}
        assert written <= set(allowed)


NAMES = st.text(st.sampled_from('ab"\\é\n'), max_size=4)
LEAVES = st.one_of(
    st.builds(lambda value: {"const": value}, st.none() | st.booleans() | NAMES),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "integer", "minimum": -3, "maximum": 40},
            {"type": "string", "maxLength": 3},
            {"type": "string", "pattern": "^a|b?$"},
        ]
    ),
)


def objects(inner: Any) -> Any:
    return st.builds(
        lambda properties, required, others: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if required & (1 << len(name))],
            **({} if others is None else {"additionalProperties": others}),
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.integers(0, 31),
        st.none() | st.just(False) | inner,
    )


TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda it, n: {"type": "array", "items": it, "maxItems": n}, inner, st.integers(0, 3)
        ),
        st.builds(lambda them: {"anyOf": them}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda them: {"type": "array", "prefixItems": them}, st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None)
@given(TREES, st.integers(0, 2**31))
def test_schemas_within_schemas(writer: RandomWriter, schema: Any, seed: int) -> None:
    whole(writer, schema, [seed, seed + 1])


@settings(max_examples=100, deadline=None)
@given(st.lists(TREES, min_size=2, max_size=3), st.integers(0, 2**31))
def test_one_of_is_taken_only_where_one_holds(
    writer: RandomWriter, branches: list[Any], seed: int
) -> None:
    schema = {"oneOf": branches}
    if refused := refusal(schema):
        assert "oneOf in schema is not supported" in refused
    else:
        whole(writer, schema, [seed, seed + 1, seed + 2])
