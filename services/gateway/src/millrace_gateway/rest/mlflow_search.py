"""MLflow's search of registered things: ``filter``, ``order_by``, pages.

A filter is comparisons joined by AND: ``name LIKE 'ft:%' AND tags.team = 'a'``.
Reference: https://mlflow.org/docs/latest/ml/search/search-models/
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from millrace_runtime import paging
from millrace_runtime.errors import InvalidArgument

_COMPARISON = re.compile(
    r"""\s*(?P<key>tags?\.(?:`[^`]+`|"[^"]+"|[\w.-]+)|\w+)
        \s*(?P<operator>!=|<=|>=|=|<|>|\bNOT\s+LIKE\b|\bI?LIKE\b|\bIN\b)
        \s*(?P<value>'[^']*'|"[^"]*"|-?\d+|\([^()]*\))\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_AND = re.compile(r"AND\b\s*", re.IGNORECASE)
_LISTED = re.compile(r"""'([^']*)'|"([^"]*)"|(-?\d+)""")
_LONGEST = 2000

Fields = Mapping[str, Any]
"""What a filter may name, of one thing; its tags by ``tags``."""
Thing = TypeVar("Thing")
_Test = Callable[[Fields], bool]


def matcher(text: str, allowed: Collection[str]) -> _Test:
    """Whether a thing meets a filter that names ``allowed`` fields.

    Raises:
        InvalidArgument: it is none, or names something else.
    """
    tests: list[_Test] = []
    at = 0
    if len(text) > _LONGEST:
        raise _wrong(f"it is longer than {_LONGEST} characters")
    while text.strip() and at < len(text):
        if tests:
            joined = _AND.match(text, at)
            if joined is None:
                raise _wrong(f"AND is expected at {text[at : at + 20]!r}")
            at = joined.end()
        found = _COMPARISON.match(text, at)
        if found is None:
            raise _wrong(f"a comparison is expected at {text[at : at + 20]!r}")
        operator = " ".join(found["operator"].upper().split())
        tests.append(_test(found["key"], operator, found["value"], allowed))
        at = found.end()
    return lambda fields: all(test(fields) for test in tests)


def _test(key: str, operator: str, value: str, allowed: Collection[str]) -> _Test:
    wanted = _compared(operator, value)
    prefix, _, tag = key.partition(".")
    if tag and prefix.lower() in ("tag", "tags"):
        name, is_negative = tag.strip('`"'), operator in ("!=", "NOT LIKE")
        # MLflow's client adds to a search that the tag of prompts is not 'true'.
        return lambda fields: (
            wanted(fields["tags"][name]) if name in fields["tags"] else is_negative
        )
    if key not in allowed:
        raise _wrong(f"{key!r} cannot be searched by; what can is {', '.join(sorted(allowed))}")
    return lambda fields: wanted(fields[key])


def _compared(operator: str, value: str) -> Callable[[Any], bool]:
    if (operator == "IN") != value.startswith("("):
        raise _wrong(f"{operator} and {value} do not go together")
    if operator == "IN":
        listed = {"".join(parts) for parts in _LISTED.findall(value)}
        return lambda found: str(found) in listed
    text = value[1:-1] if value[0] in "'\"" else value
    if operator in ("=", "!="):
        return lambda found: (str(found) == text) == (operator == "=")
    if operator.endswith("LIKE"):
        return _like(operator, text)
    if value[0] in "'\"":
        raise _wrong(f"{operator} compares numbers, and {value} is none")
    return _ordered(operator, int(text))


def _ordered(operator: str, number: int) -> Callable[[Any], bool]:
    def compare(found: Any) -> bool:
        if not isinstance(found, int):
            raise _wrong(f"{operator} compares numbers")
        below, equal = found < number, found == number
        return (equal and "=" in operator) or (below if operator[0] == "<" else found > number)

    return compare


def _like(operator: str, text: str) -> Callable[[Any], bool]:
    pattern = "".join({"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in text)
    flags = re.DOTALL | (re.IGNORECASE if operator == "ILIKE" else 0)
    compiled, is_wanted = re.compile(pattern, flags), not operator.startswith("NOT")
    return lambda found: (compiled.fullmatch(str(found)) is not None) == is_wanted


def ordered(
    things: Sequence[Thing],
    order_by: Sequence[str],
    fields: Callable[[Thing], Fields],
    allowed: Collection[str],
) -> list[Thing]:
    """``things``, sorted by ``name ASC``, ``last_updated_timestamp DESC``, ….

    Raises:
        InvalidArgument: one names what cannot be sorted by.
    """
    found = list(things)
    for one in reversed(order_by):
        key, _, way = one.strip().partition(" ")
        way = way.strip().upper() or "ASC"
        if key not in allowed or way not in ("ASC", "DESC"):
            raise InvalidArgument(
                f"order_by {one!r} is none of {', '.join(sorted(allowed))}, with ASC or DESC",
                field="order_by",
            )
        found.sort(key=_by(key, fields), reverse=way == "DESC")
    return found


def _by(key: str, fields: Callable[[Thing], Fields]) -> Callable[[Thing], Any]:
    return lambda thing: fields(thing)[key]


def page(things: Sequence[Thing], max_results: int, token: str) -> tuple[Sequence[Thing], str]:
    """A page, and the token of the next one (empty: this is the last).

    Raises:
        InvalidArgument: the token is none of ours.
    """
    text = paging.decode_token(token) or "0"
    if not text.isdecimal():
        raise InvalidArgument("page_token is none of this list's", field="page_token")
    end = int(text) + max_results
    return things[int(text) : end], paging.encode_token(str(end)) if end < len(things) else ""


def _wrong(why: str) -> InvalidArgument:
    return InvalidArgument(f"the filter cannot be read: {why}", field="filter")
