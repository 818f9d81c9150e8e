"""Whether of a ``oneOf`` at most one branch can hold, so that any of them may be written.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grammar_schema import resolve

MAXIMUM_COMPARISONS = 20_000
MAXIMUM_STEPS = 16
EVERYTHING = frozenset({"object", "array", "string", "integer", "fraction", "boolean", "null"})


class Branches:
    """Compares the branches of all the ``oneOf`` in one schema, ``root``."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAXIMUM_COMPARISONS

    def check(self, branches: Sequence[Any], path: str) -> None:
        """Branches are disjoint by their types, values, or by what a property of both must be.

        Raises:
            ValueError: two of them may both hold, for all that is seen.
        """
        for at, first in enumerate(branches):
            for other, second in enumerate(branches[:at]):
                if not self._are_disjoint(first, second, MAXIMUM_STEPS):
                    raise ValueError(
                        f"response_format: oneOf in {path} is not supported where two schemas may "
                        f"both hold, as {other} and {at}: use anyOf, or a const in a required "
                        "property"
                    )

    def _are_disjoint(self, first: Any, second: Any, steps: int) -> bool:
        self._left -= 1
        if self._left < 0:
            raise ValueError("response_format: oneOf has too many schemas to compare")
        if not steps:
            return False
        one, two = self._meant(first), self._meant(second)
        for given, against in ((one, two), (two, one)):
            for keyword in ("anyOf", "oneOf"):
                if isinstance(branches := given.get(keyword), list):
                    return all(self._are_disjoint(it, against, steps - 1) for it in branches)
        shared = _types(one) & _types(two)
        mine, theirs = _values(one), _values(two)
        if not shared or (mine is not None and theirs is not None and mine.isdisjoint(theirs)):
            return True
        return shared == {"object"} and self._have_other_properties(one, two, steps - 1)

    def _have_other_properties(
        self, one: Mapping[str, Any], two: Mapping[str, Any], steps: int
    ) -> bool:
        """Whether a property that one of them requires may not be in the other as it must be."""
        for given, against in ((one, two), (two, one)):
            mine, theirs = _dict(given.get("properties")), _dict(against.get("properties"))
            for name in [name for name in _list(given.get("required")) if isinstance(name, str)]:
                if name not in theirs and against.get("additionalProperties") is False:
                    return True
                both = name in mine and name in theirs
                if both and self._are_disjoint(mine[name], theirs[name], steps):
                    return True
        return False

    def _meant(self, schema: Any) -> Mapping[str, Any]:
        """The schema that references lead to; an empty one, which says nothing, where none."""
        for _ in range(MAXIMUM_STEPS):
            if not isinstance(schema, dict):
                return {}
            if isinstance(pointer := schema.get("$ref"), str):
                schema = resolve(self._root, pointer)
            elif len(several := _list(schema.get("allOf"))) == 1:
                schema = several[0]
            else:
                return schema
        return {}


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    given = schema.get("type", [])
    named = [name for name in (given if isinstance(given, list) else [given]) if name]
    allowed = EVERYTHING
    if named:
        allowed = frozenset(str(name) for name in named)
        allowed |= {"integer", "fraction"} if "number" in allowed else frozenset()
    if (values := _values(schema)) is not None:
        allowed &= {kind for kind, _ in values}
    return allowed


def _values(schema: Mapping[str, Any]) -> set[tuple[str, Any]] | None:
    """What may be written, with its type; None when that is not told by single values."""
    if "const" in schema:
        return {_value(schema["const"])}
    if isinstance(given := schema.get("enum"), list):
        return {_value(value) for value in given}
    return None


def _value(value: Any) -> tuple[str, Any]:
    """Two are equal when JSON Schema says so: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int | float):
        is_integer = isinstance(value, int) or value.is_integer()
        return "integer" if is_integer else "fraction", value
    if isinstance(value, str):
        return "string", value
    if value is None:
        return "null", value
    # Of two objects, or two lists, none is said to differ.
    return ("array" if isinstance(value, list) else "object"), ""


def _dict(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []
