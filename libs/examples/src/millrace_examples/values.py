"""Values of JSON: what to call them in a message, and which are refused wherever they stand."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
Mistake = tuple[str, str]
"""(field path such as ``messages[1].role``, what is wrong); the path is empty for a whole row."""

MAXIMUM_DEPTH = 64
_SHOWN_CHARACTERS = 60
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def kind_of(value: object) -> str:
    return _NAMES.get(type(value), f"of type {type(value).__name__}")


def quoted(value: object) -> str:
    """A short form of ``value`` for a message: as JSON, or what it is when it is no scalar."""
    if isinstance(value, dict | list) or type(value) not in _NAMES:
        return kind_of(value)
    return _shortened(json.dumps(value))


def place_of(parent: str, key: object) -> str:
    """The path of a field: short and printable, whatever its user called it."""
    name = str(key)
    if not name.isascii() or len(name) > _SHOWN_CHARACTERS:
        name = _shortened(name.encode("utf-8", "backslashreplace").decode("utf-8"))
    return f"{parent}.{name}" if parent else name


def is_encodable(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8."""
    return text.isascii() or _HALF_SURROGATE.search(text) is None


def flaws(row: Row) -> Iterator[Mistake]:
    """What no format can hold: half a surrogate pair, a value JSON lacks, nesting without end.

    JSON can spell half a surrogate pair (``\\ud800``), which is no character in UTF-8.
    """
    waiting: list[tuple[str, object, int]] = [("", row, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, str):
            if not is_encodable(value):
                yield place, "has half a surrogate pair, which UTF-8 cannot hold"
        elif isinstance(value, dict | list):
            if depth == MAXIMUM_DEPTH:
                yield place, f"is nested deeper than {MAXIMUM_DEPTH} levels"
                continue
            inner = list(_inside(place, value))
            if isinstance(value, dict):
                yield from _key_flaw(place, value)
            waiting += [(where, held, depth + 1) for where, held in reversed(inner)]
        elif type(value) not in _NAMES or (isinstance(value, float) and not math.isfinite(value)):
            yield place, f"is {_strange(value)}, which JSON does not have"


def _inside(place: str, value: dict[Any, Any] | list[Any]) -> Iterator[tuple[str, object]]:
    if isinstance(value, list):
        yield from ((f"{place}[{index}]", held) for index, held in enumerate(value))
    else:
        yield from ((place_of(place, key), held) for key, held in value.items())


def _key_flaw(place: str, value: dict[Any, Any]) -> Iterator[Mistake]:
    for key in value:
        if not isinstance(key, str) or not is_encodable(key):
            yield place_of(place, key), "its name has half a surrogate pair"


def _strange(value: object) -> str:
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
