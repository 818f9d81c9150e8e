"""A JSON Schema to the grammar of the JSON that it allows.

White space is where Python's ``json.dumps`` puts it, or nowhere: at most one space after a comma
or a colon. Properties come in the schema's order. Where a schema leaves open which others there
are (no ``additionalProperties``, no ``items`` after ``prefixItems``), there are none, unless it
names none at all.

``constraint.py`` has refused what is not known here; shapes are checked here. Copied beside
``model.py`` into the Triton repository, so free of imports from this package.
https://json-schema.org/draft/2020-12/json-schema-validation
"""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from grammar_numbers import number_rule
from grammar_objects import object_rule
from grammar_rules import SEPARATOR, Rules, either, quote, times
from grammar_strings import FORMATS, pattern_rule, string_rule

MAXIMUM_LENGTH = 1_000_000
MAXIMUM_ELEMENTS = 100_000

Check = Callable[[Any, str], None]


def schema_grammar(schema: Mapping[str, Any], check: Check) -> str:
    """The grammar, in xgrammar's EBNF.

    ``check`` is asked about each schema that a ``$ref`` leads to.

    Raises:
        ValueError: naming what is wrong, with its path.
    """
    return _Compiler(schema, check).text()


class _Compiler:
    """``heads`` of a rule are those that may stand where it begins, with nothing before them."""

    def __init__(self, root: Mapping[str, Any], check: Check) -> None:
        self._root = root
        self._check = check
        self._rules = Rules()
        self._any = ""
        # By what is referred to, which is the same one however the pointer is written.
        self._references: dict[int, str] = {}
        self._pending: list[tuple[Any, str]] = []
        self._made: dict[int, str] = {}
        self._heads: dict[str, set[str]] = {}
        self._typed: dict[str, Callable[[Any, str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": lambda schema, path: number_rule(self._rules, schema, True, path),
            "number": lambda schema, path: number_rule(self._rules, schema, False, path),
            "boolean": lambda *_: self._rules.name('"true" | "false"'),
            "null": lambda *_: self._rules.name('"null"'),
        }

    def text(self) -> str:
        """References are followed one after the other, however long their chain is."""
        root = self._reference("#", "schema")
        while self._pending:
            target, path = self._pending.pop()
            self._check(target, path)
            name = self._references[id(target)]
            self._rules.define(name, self._value(target, path, name))
        self._refuse_circles()
        return self._rules.text(root)

    def _value(self, schema: Any, path: str, head: str = "") -> str:
        """The rule of ``schema``. ``head`` is the reference that it stands at the head of."""
        if schema is True:
            return self._anything()
        if "$ref" in schema:
            name = self._reference(schema["$ref"], path)
            if head:
                self._heads.setdefault(head, set()).add(name)
            return name
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                places = enumerate(schema[keyword])
                return self._rules.name(
                    either([self._value(it, f"{path}.{keyword}[{at}]", head) for at, it in places])
                )
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return self._rules.name(either([quote(_json(value, path)) for value in values]))
        if "type" not in schema:
            return self._anything()
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if id(schema) not in self._made:  # references to what encloses it come here again
            bodies = [self._typed[kind](schema, path) for kind in types]
            self._made[id(schema)] = self._rules.name(either(bodies))
        return self._made[id(schema)]

    def _anything(self) -> str:
        if not self._any:
            self._any = self._rules.reserve()
            kinds = [self._typed[kind]({}, "") for kind in self._typed if kind != "integer"]
            self._rules.define(self._any, either(kinds))
        return self._any

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise ValueError(f"response_format: properties in {path} must be an object")
        rules = {
            name: self._value(inner, f"{path}.properties.{name}")
            for name, inner in properties.items()
        }
        others = schema.get("additionalProperties", not properties)
        other = "" if others is False else self._value(others, f"{path}.additionalProperties")
        return object_rule(self._rules, schema, rules, other, path)

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = _span(schema, ("minItems", "maxItems"), MAXIMUM_ELEMENTS, path)
        given = schema.get("prefixItems", [])
        if not isinstance(given, list):
            raise ValueError(f"response_format: prefixItems in {path} must be a list")
        first = [self._value(inner, f"{path}.prefixItems[{at}]") for at, inner in enumerate(given)][
            :most
        ]
        more = schema.get("items", not first or least > len(first))
        if more is False and least > len(first):
            raise ValueError(f"response_format: minItems in {path} is more than there may be")
        left = None if most is None else most - len(first)
        if more is False or left == 0:
            return self._rules.name(f'"[" {f" {SEPARATOR} ".join(first)} "]"')
        rest = self._value(more, f"{path}.items")
        return self._rules.name(f'"[" {_elements(first, rest, least - len(first), left)} "]"')

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        if "pattern" in schema:
            return pattern_rule(self._rules, schema["pattern"], path)
        if "format" in schema:
            return pattern_rule(self._rules, FORMATS[schema["format"]], path)
        least, most = _span(schema, ("minLength", "maxLength"), MAXIMUM_LENGTH, path)
        return string_rule(self._rules, least, most)

    def _reference(self, pointer: str, path: str) -> str:
        target = resolve(self._root, pointer)
        if target is None:
            raise ValueError(f"response_format: $ref in {path} leads nowhere: {pointer}")
        if id(target) not in self._references:
            self._references[id(target)] = self._rules.reserve()
            self._pending.append((target, "schema" + pointer[1:].replace("/", ".")))
        return self._references[id(target)]

    def _refuse_circles(self) -> None:
        """A reference that leads to itself before anything is written allows nothing."""
        for name in self._heads:
            ahead, seen = list(self._heads[name]), set[str]()
            while ahead:
                if (one := ahead.pop()) == name:
                    raise ValueError("response_format: a $ref in schema leads to itself")
                if one not in seen:
                    seen.add(one)
                    ahead += self._heads.get(one, ())


def _elements(first: list[str], rest: str, least: int, most: int | None) -> str:
    """What is between the brackets: ``first``, then ``rest`` so many times."""
    more = f"{SEPARATOR} {rest}"
    least = max(least, 0)
    if first:
        return f"{f' {SEPARATOR} '.join(first)} {times(more, least, most)}"
    left = None if most is None else most - 1
    one_or_more = f"{rest} {times(more, max(least - 1, 0), left)}"
    return one_or_more if least else f"({one_or_more})?"


def _span(
    schema: Mapping[str, Any], names: tuple[str, str], largest: int, path: str
) -> tuple[int, int | None]:
    """The least and the most of something; None for any number."""
    least, most = (_count(schema, name, largest, path) for name in names)
    if most is not None and (least or 0) > most:
        raise ValueError(f"response_format: {names[0]} in {path} is more than {names[1]}")
    return least or 0, most


def _count(schema: Mapping[str, Any], name: str, largest: int, path: str) -> int | None:
    """A bound on how many there are; None when there is none. Raises ValueError."""
    given = schema.get(name)
    if name not in schema or (isinstance(given, int) and given > largest and name[:3] == "max"):
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= largest:
        raise ValueError(f"response_format: {name} in {path} must be an integer, 0 to {largest}")
    return given


def resolve(root: Any, pointer: str) -> Any:
    """What a ``$ref`` points to (RFC 6901); None when it is nothing."""
    found = root
    for part in pointer.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict):
            found = found.get(key)
        else:
            return None
    return found


def _json(value: Any, path: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value)
    except ValueError:
        raise ValueError(f"response_format: {path} has a number that JSON has not") from None
    return text
