"""Strings of JSON that match a pattern, have a format or a length, as rules of a grammar.

A pattern says which texts are valid, and a grammar how their JSON is spelled: a quotation mark in
the text is two characters of JSON. Of a pattern's texts those are written that it matches as a
whole, with ``\\d``, ``\\w`` and ``\\s`` in ASCII: all of them are valid, however JSON Schema's
unanchored patterns of ECMA-262 are read.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
https://json-schema.org/understanding-json-schema/reference/regular_expressions
"""

import re
import warnings
from collections.abc import Callable, Sequence
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from grammar_rules import RAW, Rules, Span, either, one_of, quote, times, without

MAXIMUM_PATTERN_CHARACTERS = 4_096
MAXIMUM_REPETITIONS = 100_000

HEX = "[0-9a-fA-F]"
# No surrogates: alone they are no character, and a pair is written as it is.
ESCAPE = f'["\\\\/bfnrt] | "u" ([0-9abcefABCEF] {HEX}{{3}} | [dD] [0-7] {HEX}{{2}})'
SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}

DIGITS: list[Span] = [(0x30, 0x39)]
WORD: list[Span] = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
SPACE: list[Span] = [(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20)]
ASCII: list[Span] = [(0x20, 0x7E)]
# What may stand for "any but": no control characters, though they would be valid.
ANY: list[Span] = [(0x09, 0x0A), (0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF)]
LINE_ENDS: list[Span] = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
CATEGORIES: dict[Any, list[Span]] = {
    code.CATEGORY_DIGIT: DIGITS,
    code.CATEGORY_NOT_DIGIT: without(ASCII, DIGITS),
    code.CATEGORY_WORD: WORD,
    code.CATEGORY_NOT_WORD: without(ASCII, WORD),
    code.CATEGORY_SPACE: SPACE,
    code.CATEGORY_NOT_SPACE: without(ASCII, SPACE),
}
# Of Python's syntax, what ECMA-262 reads otherwise.
OTHERWISE_READ = re.compile(r"\[\]|\[\^\]|\{,|\\[AZ]|\(\?[^:=!<]")

_DATE = (
    r"(000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_OF_DAY = r"T(\d{1,4}H(\d{1,4}M(\d{1,4}S)?)?|\d{1,4}M(\d{1,4}S)?|\d{1,4}S)"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"({_LABEL}\.){{0,2}}[a-z]([a-z0-9-]{{0,61}}[a-z0-9])?"
_ATOM = r"[a-zA-Z0-9_+-]{1,20}"
_OCTET = r"(25[0-5]|2[0-4]\d|1\d{2}|[1-9]\d|\d)"
_GROUP = r"[0-9a-f]{1,4}"
_ADDRESS = "|".join(
    [
        rf"({_GROUP}:){{7}}{_GROUP}",
        *(rf"({_GROUP}:){{{before}}}(:{_GROUP}){{1,{7 - before}}}" for before in range(1, 7)),
        rf":(:{_GROUP}){{1,7}}",
        rf"({_GROUP}:){{1,7}}:",
        "::",
    ]
)
# Patterns whose texts are all of the format. RFC 3339, 5321, 1123, 2673, 4291, 4122 and 3986.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"({_DATE})T{_TIME}",
    "duration": rf"P(\d{{1,4}}W|(\d{{1,4}}Y(\d{{1,4}}M(\d{{1,4}}D)?)?|\d{{1,4}}M(\d{{1,4}}D)?"
    rf"|\d{{1,4}}D)({_OF_DAY})?|{_OF_DAY})",
    "email": rf"{_ATOM}(\.{_ATOM}){{0,2}}@({_LABEL}\.){{1,2}}[a-z]{{2,24}}",
    "hostname": _HOST,
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "ipv6": _ADDRESS,
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": rf"[a-z][a-z0-9+.-]{{0,14}}://{_HOST}(:[1-9]\d{{0,3}})?(/[a-zA-Z0-9_.~-]{{1,64}}){{0,16}}/?"
    r"(\?[a-zA-Z0-9_.~=&/-]{0,256})?(#[a-zA-Z0-9_.~=/-]{0,64})?",
}


def character_rule(rules: Rules) -> str:
    """One character of a string, in any of its spellings."""
    return rules.name(f'{one_of(RAW)} | "\\\\" ({ESCAPE})')


def string_rule(rules: Rules, least: int = 0, most: int | None = None) -> str:
    """A string of so many characters."""
    return rules.name(f'"\\"" {times(character_rule(rules), least, most)} "\\""')


def pattern_rule(rules: Rules, pattern: Any, path: str) -> str:
    """A string whose text ``pattern`` matches as a whole.

    Raises:
        ValueError: it is none, or has something that a grammar cannot say.
    """
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAXIMUM_PATTERN_CHARACTERS:
        raise ValueError(
            f"response_format: pattern in {path} must be 1 to {MAXIMUM_PATTERN_CHARACTERS} "
            "characters"
        )
    try:
        body = _Pattern().body(pattern)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        said = str(error) or "it is nested too deep"
        raise ValueError(f"response_format: pattern in {path} is not supported: {said}") from None
    return rules.name(f'"\\"" {body} "\\""')


class _Pattern:
    """Translates what Python's own parser of regular expressions found."""

    def __init__(self) -> None:
        self._kinds: dict[Any, Callable[[Any, bool, bool], str]] = {
            code.LITERAL: lambda value, *_: _spelled([(value, value)]),
            code.NOT_LITERAL: lambda value, *_: _spelled(without(ANY, [(value, value)])),
            code.ANY: lambda *_: _spelled(without(ANY, LINE_ENDS)),
            code.IN: lambda value, *_: _spelled(_class(value)),
            code.MAX_REPEAT: lambda value, *_: self._repeat(*value),
            code.MIN_REPEAT: lambda value, *_: self._repeat(*value),
            code.SUBPATTERN: lambda value, *ends: f"({self._sequence(value[3], *ends)})",
            code.BRANCH: lambda value, *ends: either(
                [self._sequence(branch, *ends) for branch in value[1]]
            ),
            code.AT: _anchor,
        }
        self._repeated = 1

    def body(self, pattern: str) -> str:
        if OTHERWISE_READ.search(pattern):
            raise ValueError("it is read differently by different languages")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse(pattern)
        if parsed.state.flags != re.UNICODE.value:
            raise ValueError("it has flags")
        return self._sequence(parsed, True, True)

    def _sequence(self, parsed: Sequence[Any], is_start: bool, is_end: bool) -> str:
        """``is_start`` and ``is_end`` tell whether nothing is before and after it."""
        bodies: list[str] = []
        for at, (kind, value) in enumerate(parsed):
            if kind not in self._kinds:
                raise ValueError(f"{str(kind).lower()} cannot be said in a grammar")
            starts = is_start and all(one == code.AT for one, _ in parsed[:at])
            ends = is_end and all(one == code.AT for one, _ in parsed[at + 1 :])
            bodies.append(self._kinds[kind](value, starts, ends))
        return " ".join(bodies) or '""'

    def _repeat(self, least: int, most: Any, parsed: Sequence[Any]) -> str:
        largest = least if most is code.MAXREPEAT else most
        before = self._repeated
        self._repeated *= max(1, largest)
        if self._repeated > MAXIMUM_REPETITIONS:
            raise ValueError(f"more than {MAXIMUM_REPETITIONS} repetitions")
        body = self._sequence(parsed, False, False)
        self._repeated = before
        return times(body, least, None if most is code.MAXREPEAT else most)


def _anchor(kind: Any, is_start: bool, is_end: bool) -> str:
    if (kind == code.AT_BEGINNING and is_start) or (kind == code.AT_END and is_end):
        return '""'
    raise ValueError("anchors stand at the ends only")


def _class(members: Sequence[Any]) -> list[Span]:
    negated = members[0][0] == code.NEGATE
    has_category = False
    spans: list[Span] = []
    for kind, value in members[negated:]:
        if kind == code.CATEGORY:
            has_category = True
            spans += CATEGORIES[value]
        else:
            spans.append(value if kind == code.RANGE else (value, value))
    if not negated:
        return spans
    return without(ASCII if has_category else ANY, spans)


def _spelled(spans: Sequence[Span]) -> str:
    """One of these characters, as JSON spells them."""
    special = without([(0, 0x10FFFF)], RAW)
    wanted = without([(0, 0x10FFFF)], without([(0, 0x10FFFF)], spans))
    bodies = []
    if raw := without(wanted, special):
        bodies.append(one_of(raw))
    bodies += [
        quote("\\" + SHORT_ESCAPES.get(number, f"u{number:04x}"))
        for number in [*range(0x20), 0x22, 0x5C]
        if any(low <= number <= high for low, high in wanted)
    ]
    if not bodies:
        raise ValueError("nothing is in one of its classes")
    return either(bodies)
