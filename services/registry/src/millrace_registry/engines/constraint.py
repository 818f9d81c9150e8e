"""``response_format`` to the grammar that a generation must keep to.

xgrammar's own reading of JSON Schema leaves out in silence what it does not know, gets some of it
wrong (``required`` names without a property, bounds of a ``number``, a quotation mark that a
``pattern`` allows), and lets white space go on without end. So the grammar is made here
(``grammar_schema.py``), of what it keeps to; the rest is refused by name, with its path.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from constraint_disjoint import Branches
from grammar_schema import schema_grammar
from grammar_strings import FORMATS, MAXIMUM_PATTERN_CHARACTERS

MAXIMUM_SCHEMA_CHARACTERS = 32_768
MAXIMUM_SCHEMA_DEPTH = 64

# Keywords that say something to people, and nothing about what is valid.
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"discriminator", "$schema", "$id", "$comment", "$defs", "definitions"}
)
NUMERIC = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
KEYWORDS = {
    "object": frozenset(
        {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format", "minLength", "maxLength"}),
    "integer": NUMERIC,
    "number": NUMERIC,
    "boolean": frozenset(),
    "null": frozenset(),
}
# A schema with one of these has nothing beside it that constrains, except for a type.
WHOLE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
PYTHON_TYPES = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Constraint:
    """``kind`` is an option of GenAI's StructuredOutputConfig: "grammar" or "regex"."""

    kind: str
    text: str


def parse_constraint(given: Any) -> Constraint:
    """Read a ``response_format``.

    Raises:
        ValueError: naming what is wrong, or what the engine cannot keep to.
    """
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "regex":
        return Constraint("regex", _pattern(given.get("pattern")))
    if kind == "json_object":
        return Constraint("grammar", _grammar({"type": "object"}))
    if kind == "json_schema":
        return Constraint("grammar", _grammar(given.get("schema")))
    raise ValueError("response_format must have a type: json_schema, json_object or regex")


def _pattern(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= MAXIMUM_PATTERN_CHARACTERS:
        raise ValueError(
            f"response_format: pattern must be 1 to {MAXIMUM_PATTERN_CHARACTERS} characters"
        )
    return given


def _grammar(schema: Any) -> str:
    if not isinstance(schema, dict):
        raise ValueError("response_format: schema must be an object")
    if (size := len(json.dumps(schema))) > MAXIMUM_SCHEMA_CHARACTERS:
        raise ValueError(
            f"response_format: a schema of {size} characters is too large, "
            f"{MAXIMUM_SCHEMA_CHARACTERS} may be used"
        )

    walk = Walk(Branches(schema), set())
    _check(schema, "schema", 0, walk)
    return str(schema_grammar(schema, lambda part, path: _check(part, path, 0, walk)))


@dataclass(frozen=True)
class Walk:
    """Through one schema; ``seen`` are the ids of what was checked."""

    branches: Branches
    seen: set[int]


def _check(schema: Any, path: str, depth: int, walk: Walk) -> None:
    """Refuse what the engine would not keep to, in ``schema`` and all within it."""
    if schema is True or id(schema) in walk.seen:
        return
    if not isinstance(schema, dict):
        raise ValueError(f"response_format: {path} must be an object or true")
    walk.seen.add(id(schema))
    if depth > MAXIMUM_SCHEMA_DEPTH:
        raise ValueError(f"response_format: schema is nested deeper than {MAXIMUM_SCHEMA_DEPTH}")
    constraining = schema.keys() - ANNOTATIONS
    if whole := next((key for key in WHOLE if key in schema), None):
        _check_whole(schema, whole, constraining, path)
        if whole == "oneOf":
            walk.branches.check(schema["oneOf"], path)
    else:
        _check_typed(schema, constraining, path)
    for name, inner in _inner(schema, path):
        _check(inner, name, depth + 1, walk)


def _check_whole(schema: dict[str, Any], whole: str, constraining: set[str], path: str) -> None:
    allowed = {whole, "type"} if whole in ("enum", "const") else {whole}
    _refuse(constraining - allowed, path, f"beside {whole}")
    value = schema[whole]
    if whole == "$ref" and not (isinstance(value, str) and (value + "/").startswith("#/")):
        raise ValueError(f"response_format: $ref in {path} must begin with #/")
    if whole in ("enum", "anyOf", "oneOf", "allOf") and not (isinstance(value, list) and value):
        raise ValueError(f"response_format: {whole} in {path} must be a list of at least one")
    if whole == "allOf" and len(value) > 1:
        raise ValueError(f"response_format: allOf in {path} may have one schema only")
    if "type" in constraining:
        allowed_types = _types(schema, path)
        values = [value] if whole == "const" else value
        if wrong := [one for one in values if not _is_of(one, allowed_types)]:
            raise ValueError(f"response_format: {wrong[0]!r} in {path} is not of its type")


def _check_typed(schema: dict[str, Any], constraining: set[str], path: str) -> None:
    types = _types(schema, path) if "type" in constraining else []
    allowed = {keyword for name in types for keyword in KEYWORDS[name]} | {"type"}
    _refuse(constraining - allowed, path, f"for {' or '.join(types) or 'what has no type'}")
    lengths = constraining & {"minLength", "maxLength"}
    if len(constraining & {"pattern", "format"}) + bool(lengths) > 1:
        raise ValueError(f"response_format: pattern, format and lengths in {path} exclude another")
    if "format" in constraining and schema["format"] not in list(FORMATS):
        raise ValueError(f"response_format: format in {path} must be one of {sorted(FORMATS)}")
    if "required" in constraining:
        _check_required(schema, path)


def _check_required(schema: dict[str, Any], path: str) -> None:
    required, properties = schema["required"], schema.get("properties", {})
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ValueError(f"response_format: required in {path} must be a list of names")
    if missing := [name for name in required if name not in properties]:
        raise ValueError(f"response_format: {path} requires {missing[0]!r}, no property of it")


def _refuse(keywords: set[str], path: str, where: str) -> None:
    if keywords:
        raise ValueError(f"response_format: {min(keywords)} in {path} is not supported {where}")


def _types(schema: dict[str, Any], path: str) -> list[str]:
    given = schema["type"]
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(name, str) and name in KEYWORDS for name in types):
        raise ValueError(f"response_format: {given!r} in {path} is no type")
    return types


def _is_of(value: Any, types: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, PYTHON_TYPES[name]) for name in types)


def _inner(schema: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly within ``schema``, with their paths. A wrong shape is the compiler's."""
    for keyword in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(keyword), dict):
            yield from ((f"{path}.{keyword}.{key}", it) for key, it in schema[keyword].items())
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(keyword), list):
            yield from ((f"{path}.{keyword}[{at}]", it) for at, it in enumerate(schema[keyword]))
    for keyword in ("items", "additionalProperties"):
        if keyword in schema and schema[keyword] is not False:
            yield f"{path}.{keyword}", schema[keyword]
